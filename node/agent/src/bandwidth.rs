//! `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`: what a pod's annotations say of its traffic, read and
//! refused as upstream does. Pure.

use sluice_network::Bandwidth;

use crate::model::Pod;
use crate::quantity;

/// Bits per second that make sense, by upstream.
const LEAST: i128 = 1_000;
const MOST: i128 = 1_000_000_000_000_000;

/// The pod's limits.
///
/// # Errors
/// Upstream's words for a text that is no quantity, or none that makes sense.
pub(crate) fn of(pod: &Pod) -> Result<Bandwidth, String> {
    let limit = |name: &str| {
        let text =
            pod.metadata.annotations.as_ref().and_then(|all| all.get(&format!("kubernetes.io/{name}-bandwidth")));
        text.map(|text| read(text)).transpose()
    };
    Ok(Bandwidth { ingress: limit("ingress")?, egress: limit("egress")? })
}

fn read(text: &str) -> Result<u64, String> {
    let bits = quantity::value(text).ok_or(
        "failed to get pod bandwidth from annotations: quantities must match the regular expression \
         '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    )?;
    let refused = match bits {
        _ if bits < LEAST => "small (< 1kbit)",
        _ if bits > MOST => "large (> 1Pbit)",
        _ => return u64::try_from(bits).map_err(|error| error.to_string()),
    };
    Err(format!("failed to get pod bandwidth from annotations: resource is unreasonably {refused}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn annotations() {
        for (text, expected) in [
            ("10M", Ok(10_000_000)),
            ("1.5G", Ok(1_500_000_000)),
            ("1Ki", Ok(1024)),
            ("1k", Ok(1000)),
            ("1P", Ok(1_000_000_000_000_000)),
            ("999", Err("resource is unreasonably small (< 1kbit)")),
            ("-1M", Err("resource is unreasonably small (< 1kbit)")),
            ("2P", Err("resource is unreasonably large (> 1Pbit)")),
            ("fast", Err("quantities must match the regular expression")),
        ] {
            let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"annotations": {"kubernetes.io/egress-bandwidth": text}},
            }))
            .unwrap();
            match (of(&pod), expected) {
                (Ok(got), Ok(bits)) => assert_eq!(got, Bandwidth { ingress: None, egress: Some(bits) }, "{text}"),
                (Err(got), Err(why)) => {
                    assert!(got.starts_with("failed to get pod bandwidth") && got.contains(why), "{text}: {got}");
                }
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
        assert_eq!(of(&Pod::default()), Ok(Bandwidth::default()));
    }
}
