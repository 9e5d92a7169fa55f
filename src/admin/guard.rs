//! Who may ask: the token, the `Host` header, and the site that a browser's request comes from.
//!
//! With a token, knowing it is the proof. Without one the address is loopback, and the danger is a browser on the same
//! machine: a foreign page that resolves its own name to 127.0.0.1 (seen by its `Host`), or one that posts across sites
//! (seen by its `Origin`).

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::Secret;

/// Paths that are answered without a token: probes, and the page, which holds no data and asks for the token itself.
const OPEN_PATHS: [&str; 5] = ["/livez", "/readyz", "/", "/page.css", "/page.js"];

/// Why a request is not answered.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: String,
}

fn refuse(status: StatusCode, reason: &str) -> Result<(), Refusal> {
    Err(Refusal {
        status,
        reason: reason.to_owned(),
    })
}

/// The rules of one admin address.
pub(super) struct Guard {
    /// A digest, so that the comparison takes as long whatever the length of what was sent.
    token: Option<[u8; 32]>,
    address: SocketAddr,
}

impl Guard {
    pub(super) fn new(token: Option<Secret>, address: SocketAddr) -> Guard {
        Guard {
            token: token.map(|token| digest(token.expose())),
            address,
        }
    }

    pub(super) fn check(&self, request: &Request) -> Result<(), Refusal> {
        let headers = request.headers();
        match &self.token {
            Some(token) => {
                let open = OPEN_PATHS.contains(&request.uri().path()) && request.method() == Method::GET;
                if !open && !presents(headers, token) {
                    return refuse(
                        StatusCode::UNAUTHORIZED,
                        "send the header `authorization: Bearer TOKEN`",
                    );
                }
            }
            None => self.check_host(request)?,
        }
        match *request.method() {
            Method::GET | Method::HEAD => Ok(()),
            _ => check_origin(headers),
        }
    }

    fn check_host(&self, request: &Request) -> Result<(), Refusal> {
        let named = [
            host(request.headers()),
            request.uri().authority().map(|authority| authority.as_str()),
        ];
        let mut named = named.into_iter().flatten().peekable();
        if named.peek().is_some() && named.all(|host| self.is_ours(host)) {
            return Ok(());
        }
        refuse(
            StatusCode::FORBIDDEN,
            "the Host header is not this address; use http://127.0.0.1, or set admin.token to allow other names",
        )
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        name.eq_ignore_ascii_case("localhost")
            || name
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_loopback() || ip == self.address.ip())
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn presents(headers: &HeaderMap, token: &[u8; 32]) -> bool {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, sent)) = value.and_then(|value| value.split_once(' ')) else {
        return false;
    };
    scheme.eq_ignore_ascii_case("bearer") && bool::from(digest(sent.trim()).ct_eq(token))
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST).and_then(|value| value.to_str().ok())
}

/// A browser names the page's site with every POST and DELETE; a shell or a script names none.
fn check_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let site = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"))
        .map(|(_, site)| site);
    match (site, host(headers)) {
        (Some(site), Some(host)) if site.eq_ignore_ascii_case(host) => Ok(()),
        _ => refuse(StatusCode::FORBIDDEN, "the request comes from a page of another site"),
    }
}

/// Whether the body is said to be JSON.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("application/json")
}
