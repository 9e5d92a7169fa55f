//! What the documents show: commands with what they print.

use std::path::Path;

/// One command as a document shows it.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) document: &'static str,
    pub(crate) line: usize,
    pub(crate) command: String,
    pub(crate) output: Vec<String>,
}

impl Shown {
    pub(crate) fn place(&self) -> String {
        format!("{}:{}: `{}`", self.document, self.line, self.command)
    }
}

pub(crate) fn text(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The commands of the blocks marked `console`: after `$ `, over several lines where a quote is open.
pub(crate) fn commands(document: &'static str) -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    let mut inside = false;
    for (at, line) in text(document).lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let (true, Some(command)) = (inside, line.strip_prefix("$ ")) {
            all.push(Shown {
                document,
                line: at + 1,
                command: command.into(),
                output: Vec::new(),
            });
        } else if let (true, Some(last)) = (inside, all.last_mut()) {
            if last.command.matches('"').count() % 2 == 1 {
                last.command = format!("{}\n{line}", last.command);
            } else {
                last.output.push(line.into());
            }
        }
    }
    all
}

/// What stands between backticks in the text and begins with the program's name.
pub(crate) fn mentions(document: &'static str) -> Vec<String> {
    let mut text = text(document);
    // Blocks are run, not parsed.
    while let Some(from) = text.find("\n```") {
        let end = text[from + 4..]
            .find("\n```")
            .map_or(text.len(), |end| from + 4 + end + 4);
        text.replace_range(from..end, "\n");
    }
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|span| span.starts_with("sessionferry "))
        .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// What a duration is counted in may differ as well: `1 second`, `12 seconds`.
const UNITS: &[&str] = &["ms", "s", "second", "seconds", "minute", "minutes"];

/// Whether the output has a line with the same words; numbers, and what holds one, may differ.
pub(crate) fn has_line(output: &str, shown: &str) -> bool {
    let wanted = words(shown);
    wanted.is_empty() || output.lines().any(|line| words(line) == wanted)
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace()
        .filter(|word| !word.contains(|c: char| c.is_ascii_digit()) && !UNITS.contains(word))
        .collect()
}
