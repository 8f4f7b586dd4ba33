//! Whether the tests may trace, and that only one does at a time.
//!
//! Tracing needs root. Without it a test prints that it is skipped, and passes, except where
//! `CI=true`: there a skipped test would go unnoticed, and fails.

use std::fs::File;

use anyhow::{Context, Result, bail};

/// `CAP_SYS_ADMIN`, as a bit of `CapEff`.
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// `CAP_BPF`, as a bit of `CapEff`.
const CAP_BPF: u64 = 1 << 39;

/// The right to trace, for as long as it is held.
///
/// Held by one test at a time, whichever process it runs in: on a machine with few cores the
/// tests would otherwise time each other out.
#[derive(Debug)]
pub struct Privilege {
    _lock: File,
}

/// Waits for the right to trace; `None` if this user has none and the test is to be skipped.
pub fn require_privilege() -> Result<Option<Privilege>> {
    if let Some(lacking) = lacking_privilege()? {
        if std::env::var_os("CI").is_some_and(|value| value == "true") {
            bail!("needs root: {lacking}");
        }
        println!("skipped: needs root ({lacking})");
        return Ok(None);
    }
    let path = crate::target_directory()?.join("test-privilege.lock");
    let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    lock.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(Some(Privilege { _lock: lock }))
}

fn lacking_privilege() -> Result<Option<String>> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).with_context(|| format!("no {name} in /proc/self/status"))
    };
    let effective = u64::from_str_radix(field("CapEff:")?, 16).context("CapEff")?;
    if effective & CAP_SYS_ADMIN == 0 && effective & CAP_BPF == 0 {
        return Ok(Some("neither CAP_SYS_ADMIN nor CAP_BPF".to_owned()));
    }
    let user = field("Uid:")?.split_whitespace().nth(1).context("Uid")?;
    Ok((user != "0").then(|| format!("the effective user is {user}")))
}

/// Skips the test that calls it unless it may trace, and holds the right until the test ends.
#[macro_export]
macro_rules! privileged {
    () => {
        let Some(_privilege) = $crate::privilege::require_privilege()? else {
            return Ok(());
        };
    };
}
