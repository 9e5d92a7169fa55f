//! What a cutover or rollback asks before it begins: each check with its answer, in plain words.

use super::Controller;
use crate::clock::now_ms;
use crate::sink::redis::Role;
use crate::status::{Authority, BackfillState, Check, VerifyState};

/// How old a clean verify may be. The tee goes on after it, so this guards against a forgotten one, not against change.
const CERTIFICATE_MAX_AGE_MS: i64 = 60 * 60 * 1000;
/// A sink further behind than this must catch up first, seconds: the hold waits for it.
pub(super) const MAX_LAG_SECONDS: f64 = 2.0;
/// Memory that must be free at the new authority, as a share of its limit.
const MIN_FREE_MEMORY: f64 = 0.05;
/// Harmless: written with an expiry of a second and deleted at once.
const PROBE_KEY: &str = "sessionferry:probe";

impl Controller {
    /// Asks everything that a switch to `to` depends on. With `force`, old or missing certificates are not asked for. Where
    /// the old authority is `lost`, what only it can tell is not waited for.
    pub(super) async fn checks(&self, to: Authority, force: bool, lost: bool) -> Vec<Check> {
        let mut checks = Vec::new();
        let mut add = |name: &str, result: Result<String, String>| {
            let passed = result.is_ok();
            checks.push(Check {
                name: name.to_owned(),
                passed,
                detail: result.unwrap_or_else(|error| error),
            });
        };
        if to == Authority::Target && !force {
            add("backfill done", self.check_backfill());
            add("verify clean and recent", self.check_verify());
            add("sessions found", self.check_found().await);
        }
        add(
            "new authority reachable",
            self.parts
                .stores
                .of(to)
                .ping()
                .await
                .map(|()| "it answers".into())
                .map_err(|e| e.to_string()),
        );
        add("new authority writable", self.check_writable(to).await);
        if lost {
            let answer = "it does not: what waits for it goes along, and sessions in doubt are named";
            add("old authority answers", Ok(answer.into()));
        } else {
            add("new authority kept its sessions", self.check_kept(to).await);
            add("way back", self.check_way_back(to.other()).await);
            add("the other Redis caught up", self.check_sink(&self.parts.tee.redis));
            if self.parts.tee.database.is_enabled() {
                add("database caught up", self.check_sink(&self.parts.tee.database));
            }
        }
        add(
            "pending writes recorded",
            self.parts
                .journal
                .trouble()
                .map_or(Ok("data_dir takes them".into()), Err),
        );
        checks
    }

    fn check_backfill(&self) -> Result<String, String> {
        let state = self.state();
        match state.backfill.state {
            BackfillState::Done => Ok(format!("{} sessions copied", state.backfill.copied)),
            _ => Err("not done: run `sessionferry backfill`".into()),
        }
    }

    /// Three empty stores are the same, too: under a wrong prefix, nothing was copied and nothing compared.
    async fn check_found(&self) -> Result<String, String> {
        let compared = self.state().verify.compared;
        if compared > 0 {
            return Ok(format!("{compared} compared"));
        }
        match crate::check::other_prefix(self.parts.stores.authority_store()).await {
            None => Ok("the site has none".into()),
            Some(prefix) => Err(format!(
                "verify compared none, but keys start with {prefix}: are django.key_prefix, django.key_version and \
                 django.engine the site's own?"
            )),
        }
    }

    fn check_verify(&self) -> Result<String, String> {
        let state = self.state();
        if state.verify.state != VerifyState::Clean {
            return Err("not clean: run `sessionferry verify`".into());
        }
        let age_ms = state.verified_at_ms.map_or(i64::MAX, |at| now_ms() - at);
        if age_ms > CERTIFICATE_MAX_AGE_MS {
            return Err("the last clean verify is more than an hour old: run `sessionferry verify` again".into());
        }
        Ok(format!(
            "{} sessions compared {} s ago",
            state.verify.compared,
            age_ms / 1000
        ))
    }

    /// After the switch writes go to `from`, so that it can be returned to: that must be seen to work before.
    async fn check_way_back(&self, from: Authority) -> Result<String, String> {
        let probed = self.parts.stores.of(from).write_probe(PROBE_KEY).await;
        probed
            .map(|()| format!("a probe was written to the {from} and deleted"))
            .map_err(|error| format!("writes could not be teed back to the {from}: {error}"))
    }

    async fn check_writable(&self, to: Authority) -> Result<String, String> {
        let store = self.parts.stores.of(to);
        let facts = store.facts(now_ms()).await.map_err(|error| error.to_string())?;
        if facts.role == Some(Role::Replica) {
            return Err(format!("the {to} Redis is a replica: give the address of its master"));
        }
        if let (Some(max), Some(used)) = (facts.maxmemory.filter(|&max| max > 0), facts.used_memory)
            && (max.saturating_sub(used) as f64) < max as f64 * MIN_FREE_MEMORY
        {
            return Err(format!(
                "the {to} Redis uses {used} of {max} bytes: give it more memory"
            ));
        }
        store.write_probe(PROBE_KEY).await.map_err(|error| error.to_string())?;
        Ok("a probe was written and deleted".into())
    }

    fn check_sink(&self, sink: &crate::tee::Pending) -> Result<String, String> {
        let (pending, lag) = (sink.len(), sink.lag_seconds());
        if lag <= MAX_LAG_SECONDS {
            return Ok(format!("{pending} pending"));
        }
        let error = sink.last_error().map(|error| format!(" ({error})")).unwrap_or_default();
        Err(format!("{pending} writes wait, the oldest for {lag:.1} s{error}"))
    }
}
