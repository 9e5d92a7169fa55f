//! The server's commands and their arguments, from its own `COMMAND DOCS`.

use super::value::{Value, parse};

#[derive(Debug)]
pub struct Documented {
    /// The words of the name: `client`, `kill`.
    pub name: Vec<String>,
    pub group: String,
    pub arguments: Vec<Argument>,
}

#[derive(Debug)]
pub struct Argument {
    pub name: String,
    pub kind: String,
    pub token: Option<String>,
    pub optional: bool,
    pub multiple: bool,
    pub repeats_token: bool,
    pub arguments: Vec<Argument>,
}

fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    map.items()
        .chunks(2)
        .find(|pair| pair[0].text() == Some(name.as_bytes()))
        .and_then(|pair| pair.get(1))
}

fn text(value: Option<&Value>) -> String {
    String::from_utf8_lossy(value.and_then(Value::text).unwrap_or_default()).into_owned()
}

/// Every command, those with subcommands too, in the order of their names: the server's own order is another at each start.
pub fn read(docs: &[u8], list: &[u8]) -> Vec<Documented> {
    let mut commands = Vec::new();
    collect(&parse(docs).expect("COMMAND DOCS is a reply"), &mut commands);
    for name in parse(list).expect("COMMAND LIST is a reply").items() {
        let name = text(Some(name));
        // `client|kill` and its like are in the docs, under `client`.
        if !name.contains('|') && !commands.iter().any(|command| command.name == [name.as_str()]) {
            commands.push(Documented {
                name: vec![name],
                group: String::new(),
                arguments: Vec::new(),
            });
        }
    }
    commands.sort_by(|a, b| a.name.cmp(&b.name));
    commands
}

fn collect(docs: &Value, into: &mut Vec<Documented>) {
    for pair in docs.items().chunks(2) {
        let name = text(pair.first());
        into.push(Documented {
            name: name.split('|').map(str::to_owned).collect(),
            group: text(field(&pair[1], "group")),
            arguments: arguments(field(&pair[1], "arguments")),
        });
        if let Some(subcommands) = field(&pair[1], "subcommands") {
            collect(subcommands, into);
        }
    }
}

fn arguments(list: Option<&Value>) -> Vec<Argument> {
    let one = |argument: &Value| {
        let flags: Vec<String> = field(argument, "flags")
            .map(|flags| flags.items().iter().map(|flag| text(Some(flag))).collect())
            .unwrap_or_default();
        let has = |flag: &str| flags.iter().any(|one| one == flag);
        Argument {
            name: text(field(argument, "name")),
            kind: text(field(argument, "type")),
            token: field(argument, "token").map(|token| text(Some(token))),
            optional: has("optional"),
            multiple: has("multiple") || has("multiple_token"),
            repeats_token: has("multiple_token"),
            arguments: arguments(field(argument, "arguments")),
        }
    };
    list.map(|list| list.items().iter().map(one).collect())
        .unwrap_or_default()
}
