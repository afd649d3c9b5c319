//! Runs what a lifecycle hook asks for.

use std::time::Duration;

use crate::model::Handler;
use crate::probes::{self, Outcome, Target};

/// Runs a hook; `limit` bounds it.
pub(super) async fn run(target: &Target, handler: &Handler, limit: Duration) -> Result<(), String> {
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.into()).min(limit)).await;
        return Ok(());
    }
    if let Some(exec) = &handler.exec {
        // Hooks have no output limit of their own: only the exit code counts.
        return match target.runtime.exec_sync(&target.id, exec.command.clone(), Some(limit)).await {
            Ok(out) if out.code == 0 => Ok(()),
            Ok(out) => {
                let text = String::from_utf8_lossy(if out.stderr.is_empty() { &out.stdout } else { &out.stderr });
                Err(format!(
                    "command '{}' exited with {}: {}",
                    exec.command.join(" "),
                    out.code,
                    text.chars().take(512).collect::<String>()
                ))
            }
            Err(e) => Err(e.to_string()),
        };
    }
    match probes::attempt(target, handler, limit).await {
        Outcome::Success => Ok(()),
        // Upstream counts any HTTP answer of a hook as done.
        Outcome::Failure(m) if handler.http_get.is_some() && m.starts_with("HTTP probe failed") => Ok(()),
        Outcome::Failure(m) | Outcome::Error(m) => Err(m),
    }
}
