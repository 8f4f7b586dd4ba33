//! Counts tests from what Rust's test harness prints.
//!
//! ```text
//!   running 3 tests                    a test program begins
//!   test a::b ... ok
//!   test a::c ... FAILED               a name to report at the end
//!   test result: FAILED. 2 passed; 1 failed; 0 ignored; …    what counts
//! ```
//!
//! The counts come from the result line. A program that begins and never prints one has died, and
//! that is one failure, whatever it printed before.

use anyhow::Result;

/// How many tests passed and failed, and which failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
    /// A test program has begun and has not printed its result.
    running: bool,
}

impl Tally {
    pub(crate) fn passed(&self) -> u64 {
        self.passed
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    /// The names of what failed, in order.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    pub(crate) fn pass(&mut self) {
        self.passed += 1;
    }

    pub(crate) fn fail(&mut self, name: &str) {
        self.failed += 1;
        self.failures.push(name.to_owned());
    }

    /// Adds what was counted elsewhere.
    pub(crate) fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
    }

    /// Runs tests, which read their lines into this; if they fail otherwise, that is one failure.
    pub(crate) fn count(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Result<()>) {
        eprintln!("\n== {name}");
        let failed_before = self.failed;
        let outcome = run(self);
        self.end_of_output();
        if let Err(error) = outcome {
            eprintln!("error: {name}: {error:#}");
            if self.failed == failed_before {
                self.fail(name);
            }
        }
    }

    /// Takes in one line of the harness's stdout.
    pub(crate) fn read(&mut self, line: &str) {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.end_of_output();
            self.running = true;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.running = false;
            self.passed += count_before(result, " passed;");
            self.failed += count_before(result, " failed;");
        } else if let Some(name) = failed_test(line) {
            self.failures.push(name.to_owned());
        }
    }

    /// Notes that no more lines come: a program still running has died.
    pub(crate) fn end_of_output(&mut self) {
        if std::mem::take(&mut self.running) {
            self.fail("a test program that died before its end");
        }
    }
}

/// The name in `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// The number right before `label`; 0 if there is none.
fn count_before(line: &str, label: &str) -> u64 {
    line.split_once(label)
        .and_then(|(before, _)| before.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally.end_of_output();
        tally
    }

    #[test]
    fn results_of_all_programs_are_added() {
        let output = "
running 2 tests
test a ... ok
test b ... FAILED

failures:

---- b stdout ----
thread 'b' panicked at src/lib.rs:1:1

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.00s


running 1 test
test c ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
";

        let tally = tally_of(output);

        let expected =
            Tally { passed: 2, failed: 1, failures: vec!["b".to_owned()], running: false };
        assert_eq!(tally, expected);
    }

    #[test]
    fn program_that_dies_is_one_failure() {
        let output = "
running 2 tests
test a ... ok

running 1 test
test c ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s

running 5 tests
";

        let tally = tally_of(output);

        assert_eq!((tally.passed(), tally.failed()), (1, 2));
    }

    #[test]
    fn lines_that_tests_print_do_not_count() {
        let output =
            "running away\nthe test result: ok. 5 passed; 5 failed;\n12 passed, 3 failed\n";

        assert_eq!(tally_of(output), Tally::default());
    }
}
