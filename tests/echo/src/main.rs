//! A small server that says which pod answered, and the client that asks it. It is built static,
//! goes into the sample image, and uses nothing but the standard library and one signal mask.
//!
//! `serve` answers HTTP/1.1 (kept connections) and UDP; `get` and `udp` ask. Nothing here is
//! specific to Sluice: the same image runs on any Kubernetes.

mod client;
mod load;
mod server;

use std::process::ExitCode;

const USAGE: &str = "\
usage: echo serve [--http PORT] [--udp PORT] [--drain SECONDS]
       echo get URL [--times N] [--distinct N]
       echo udp HOST:PORT TEXT
       echo load --direct ADDRESS:PORT --services ADDRESS:PORT,... [--rounds N]

serve  answers every request with the pod's name (POD_NAME, else the host name) and the caller's
       address. GET /healthz says whether it is healthy; /healthz/fail and /healthz/pass switch that.
       On SIGTERM it goes on answering for --drain seconds (default 1), then exits with 0.
get    asks URL N times (default 1) over new connections; with --distinct N it asks until N
       different first lines have come, at most --times requests (default 200).
udp    sends TEXT in one datagram and prints the answer.
load   asks a pod directly and Services in front of it in turns of 0.2 s, with kept and with short
       connections, N rounds of each (default 20), and prints what came of each round as JSON.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["serve", rest @ ..] => options(rest, &["--http", "--udp", "--drain"])
            .and_then(|o| server::run(number(&o, 0, 8080)?, number(&o, 1, 8080)?, number(&o, 2, 1)?)),
        ["get", url, rest @ ..] => options(rest, &["--times", "--distinct"]).and_then(|o| {
            let distinct = number(&o, 1, 0u32)?;
            client::get(url, number(&o, 0, if distinct > 0 { 200 } else { 1 })?, distinct)
        }),
        ["udp", address, text] => client::udp(address, text),
        ["load", rest @ ..] => {
            options(rest, &["--direct", "--services", "--rounds"]).and_then(|o| match (o[0], o[1]) {
                (Some(direct), Some(services)) => load::run(number(&o, 2, 20)?, direct, services),
                _ => Err(format!("load needs --direct and --services\n{USAGE}")),
            })
        }
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The values of `names`, in their order, from `--name value` pairs.
fn options<'a>(words: &[&'a str], names: &[&str]) -> Result<Vec<Option<&'a str>>, String> {
    let mut values = vec![None; names.len()];
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let place = names.iter().position(|n| n == word).ok_or_else(|| format!("unknown option {word}\n{USAGE}"))?;
        values[place] = Some(*words.next().ok_or_else(|| format!("{word} needs a value"))?);
    }
    Ok(values)
}

fn number<T: std::str::FromStr>(values: &[Option<&str>], place: usize, default: T) -> Result<T, String> {
    match values[place] {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("{text:?} is not a number in range")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_by_name() {
        assert_eq!(options(&["--b", "2"], &["--a", "--b"]), Ok(vec![None, Some("2")]));
        assert!(options(&["--c", "2"], &["--a"]).is_err());
        assert!(options(&["--a"], &["--a"]).is_err());
        assert_eq!(number::<u16>(&[Some("70000")], 0, 1), Err("\"70000\" is not a number in range".into()));
    }
}
