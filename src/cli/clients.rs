//! `sessionferry clients`: who is connected to the proxy.

use clap::Args;
use indicatif::HumanCount;
use serde_json::Value;

use super::client::{Client, ClientArgs};
use super::{Exit, out};
use crate::status::ClientList;

/// `sessionferry clients`.
#[derive(Args, Clone, Debug)]
pub struct ClientsArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: &ClientsArgs) -> Exit {
    let shown = Client::new(&args.client).and_then(|client| {
        if args.json {
            return Ok(client.get::<Value>("/api/v1/clients")?.to_string());
        }
        Ok(render(&client.get("/api/v1/clients")?))
    });
    match shown {
        Ok(text) => {
            out(&text);
            Exit::Done
        }
        Err(error) => error.report("clients", args.json),
    }
}

/// A line for each kind of client. Pure, so that it can be tested.
fn render(list: &ClientList) -> String {
    if list.clients.is_empty() {
        return "no client is connected".into();
    }
    let width = list.clients.iter().map(|group| group.address.len()).max().unwrap_or(0);
    let mut lines: Vec<String> = list
        .clients
        .iter()
        .map(|group| {
            let named = group.name.as_ref().map(|name| format!("named {name}"));
            let words: Vec<String> = [group.library.clone(), named].into_iter().flatten().collect();
            let said = if words.is_empty() {
                "says nothing of itself".into()
            } else {
                words.join(", ")
            };
            format!(
                "{:>6}  {:width$}  {said}",
                HumanCount(group.connections).to_string(),
                group.address
            )
        })
        .collect();
    if list.left_out > 0 {
        lines.push(format!("        and {} smaller groups", HumanCount(list.left_out)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ClientGroup;

    #[test]
    fn a_line_for_each_kind_of_client() {
        let group = |address: &str, name: Option<&str>, library: Option<&str>, connections| ClientGroup {
            address: address.into(),
            name: name.map(Into::into),
            library: library.map(Into::into),
            connections,
        };
        let mut list = ClientList {
            clients: vec![
                group("10.0.0.7", None, Some("redis-py 5.0.1"), 1200),
                group("10.0.0.12", Some("celery"), Some("redis-py 5.0.1"), 8),
                group("unix socket", None, None, 1),
            ],
            left_out: 3,
        };
        assert_eq!(
            render(&list),
            " 1,200  10.0.0.7     redis-py 5.0.1\n     \
             8  10.0.0.12    redis-py 5.0.1, named celery\n     \
             1  unix socket  says nothing of itself\n        \
             and 3 smaller groups"
        );
        list.clients.clear();
        assert_eq!(render(&list), "no client is connected");
    }
}
