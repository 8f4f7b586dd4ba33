//! Pages as a browser shows them.

use std::path::Path;
use std::process::Command;

/// Chromium without a screen.
pub(crate) const BROWSER: &str = "/usr/bin/chromium-headless-shell";

/// The document of `url` after its scripts have run, tags and all.
///
/// `profile` is a directory that the browser may use; the time is the page's own, so that a slow
/// machine shows the same.
pub(crate) fn document(browser: &Path, profile: &Path, url: &str) -> String {
    let output = Command::new("timeout")
        .arg("100")
        .arg(browser)
        .args(["--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"])
        .args(["--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.join("browser").display()))
        .arg(url)
        .output()
        .expect("the browser runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
