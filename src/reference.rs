//! The book's reference of commands, settings and metrics, from what the program itself goes by: `sluice documents
//! --reference DIR`, which `cargo xtask book` calls. A test compares it with the pages that are checked in.

use std::fmt::Write as _;

use clap::{Arg, Args as _, Command, CommandFactory as _};

use crate::{config::Options, daemon::NodeOptions};

const NOTE: &str = "<!-- Written by `cargo xtask book`; changes here are lost. -->\n";

/// Names and texts of the pages.
pub(crate) fn pages() -> [(&'static str, String); 3] {
    [("cli.md", commands()), ("configuration.md", settings()), ("metrics.md", metrics())]
}

fn commands() -> String {
    let mut out = format!(
        "# Commands\n\n{NOTE}\nEvery command takes the [settings](configuration.md) that concern it as flags as well; they are not \
         repeated here. `sluice COMMAND --help` says all of it, and so do the man pages.\n"
    );
    let mut root = crate::Arguments::command();
    root.build();
    let shared = setting_ids();
    for command in root.get_subcommands() {
        one(&mut out, "sluice", command, &shared);
    }
    out
}

fn one(out: &mut String, above: &str, command: &Command, shared: &[String]) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    // Writing to a String cannot fail, here and below.
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(out, "\n## {name}\n\n{}\n", sentences(&about));
    let own = |arg: &&Arg| {
        !arg.is_hide_set()
            && !shared.contains(&arg.get_id().to_string())
            && !["help", "version"].contains(&arg.get_id().as_str())
    };
    let arguments: Vec<&Arg> = command.get_arguments().filter(own).collect();
    if !arguments.is_empty() {
        out.push_str("\n| argument | meaning |\n| --- | --- |\n");
    }
    for arg in arguments {
        let _ = writeln!(out, "| {} | {} |", flag(arg), meaning(arg));
    }
    for inner in command.get_subcommands() {
        one(out, &name, inner, shared);
    }
}

fn settings() -> String {
    let mut out = format!(
        "# Settings\n\n{NOTE}\nSettings are lines of `/etc/sluice/sluice.yaml` (or of the file given with `--config`), or flags of the \
         same name, which win. A setting that may be repeated is a list in the file: `etcd: [http://192.0.2.21:2379]`.\n\n\
         | setting | flag | meaning |\n| --- | --- | --- |\n"
    );
    for arg in setting_args() {
        let _ = writeln!(out, "| `{}` | {} | {} |", camel(arg.get_id().as_str()), flag(&arg), meaning(&arg));
    }
    out
}

fn metrics() -> String {
    let mut out = format!(
        "# Metrics\n\n{NOTE}\n## Of a node\n\n`https://<node>:10250/metrics`. What they count exactly, and from where, is in \
         [Metrics of the data plane](../metrics.md).\n\n| name | type | labels | meaning |\n| --- | --- | --- | --- |\n"
    );
    for metric in sluice_agent::api::every_metric() {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            metric.name,
            metric.kind.name(),
            labels.join(", "),
            cell(metric.help)
        );
    }
    out.push_str(
        "\n## Of a server\n\n`https://<server>:6443/metrics`.\n\n| name | type | meaning |\n| --- | --- | --- |\n",
    );
    let text = sluice_apiserver::described_metrics();
    let after = |line: &str, mark: &str| -> Option<(String, String)> {
        let (name, rest) = line.strip_prefix(mark)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let helps = text.lines().filter_map(|line| after(line, "# HELP "));
    let kinds = text.lines().filter_map(|line| after(line, "# TYPE "));
    for ((name, help), (_, kind)) in helps.zip(kinds) {
        let _ = writeln!(out, "| `{name}` | {kind} | {} |", cell(&help));
    }
    out
}

/// All that a settings file may say, as flags.
fn setting_args() -> Vec<Arg> {
    let options = Options::augment_args(Command::new("settings"));
    let node = NodeOptions::augment_args(Command::new("node"));
    let mut all: Vec<Arg> = options.get_arguments().filter(|arg| arg.get_id() != "config").cloned().collect();
    all.extend(
        node.get_arguments().filter(|arg| ["server", "token", "ca_hash"].contains(&arg.get_id().as_str())).cloned(),
    );
    all
}

/// Names of the flags that every command has.
fn setting_ids() -> Vec<String> {
    let options = Options::augment_args(Command::new("settings"));
    options.get_arguments().map(|arg| arg.get_id().to_string()).collect()
}

fn flag(arg: &Arg) -> String {
    let value = arg.get_value_names().filter(|_| arg.get_action().takes_values()).map(|names| names.join(" "));
    let value = value.unwrap_or_default();
    let shown = match (arg.get_long(), value.is_empty()) {
        (Some(long), true) => format!("--{long}"),
        (Some(long), false) => format!("--{long} {value}"),
        (None, _) => value,
    };
    format!("`{}`", cell(&shown))
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let values: Vec<String> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let mut out = cell(&sentences(&help));
    if arg.get_action().takes_values() && !values.is_empty() && !help.contains("[default") {
        let _ = write!(out, " ({})", values.join(", "));
    }
    if arg.get_action().takes_values() && !defaults.is_empty() && !help.contains("[default") {
        let _ = write!(out, " [default: {}]", defaults.join(", "));
    }
    out
}

/// In a table a bar ends the cell, and an angle bracket may begin a tag.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

/// Paragraphs kept, lines within them joined.
fn sentences(text: &str) -> String {
    text.trim().replace("\n\n", "\u{0}").replace('\n', " ").replace('\u{0}', "\n\n")
}

/// `pod_cidr` as the settings file has it: `podCidr`.
fn camel(id: &str) -> String {
    let mut parts = id.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let (head, tail) = part.split_at(part.len().min(1));
        name + &head.to_uppercase() + tail
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_says_what_the_program_does() {
        let checked_in = [
            include_str!("../docs/reference/cli.md"),
            include_str!("../docs/reference/configuration.md"),
            include_str!("../docs/reference/metrics.md"),
        ];
        for ((name, text), page) in pages().into_iter().zip(checked_in) {
            assert!(text == page, "docs/reference/{name} is not what the program says: cargo xtask book");
        }
    }

    #[test]
    fn every_setting_is_one_of_the_settings_file() {
        for arg in setting_args() {
            let line = format!("{}: {{}}", camel(arg.get_id().as_str()));
            let said =
                serde_saphyr::from_str::<Options>(&line).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!said.contains("unknown field"), "{line}: {said}");
        }
        let said = serde_saphyr::from_str::<Options>("nonsense: {}").unwrap_err().to_string();
        assert!(said.contains("unknown field"), "{said}");
    }
}
