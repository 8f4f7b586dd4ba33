//! Real programs with work that is the same every time, as Debian builds them.
//!
//! Each is sized so that it runs a good part of a second untraced. Sources and repositories are
//! made here, so that nothing depends on what lies on the machine.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::shell;

/// A command to be run to its end.
pub(super) struct Workload {
    pub(super) name: &'static str,
    /// `NAME=VALUE` first, then the command, as the stopwatch takes it.
    pub(super) command: Vec<String>,
    /// What memtrace may cost, in bare runs.
    pub(super) target: f64,
    /// Whether the other tools run it as well.
    pub(super) compared: Compared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    WithPeers,
    WithBareOnly,
}

/// Makes what the workloads read, and names them; a line on each whose program is not there.
pub(super) fn prepare(dir: &Path, scale: Scale) -> Result<(Vec<Workload>, Vec<String>)> {
    let size = |full: u32| match scale {
        Scale::Full => full,
        Scale::Smoke => full.div_ceil(20),
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let mut workloads = vec![
        Workload {
            name: "sqlite3",
            command: words(&["/usr/bin/sqlite3", ":memory:", &sql(size(300_000))]),
            target: 9.0,
            compared: Compared::WithPeers,
        },
        Workload {
            name: "python3",
            command: words(&["PYTHONMALLOC=malloc", "/usr/bin/python3", "-c", &python(size(60))]),
            target: 30.0,
            compared: Compared::WithPeers,
        },
        Workload {
            name: "cc1plus",
            command: compiler(dir)?,
            target: 3.0,
            compared: Compared::WithPeers,
        },
        Workload {
            name: "perl",
            command: words(&["/usr/bin/perl", "-e", &perl(size(10))]),
            target: 6.0,
            compared: Compared::WithBareOnly,
        },
        Workload {
            name: "git log -p",
            command: git_log(dir, size(400))?,
            target: 2.0,
            compared: Compared::WithBareOnly,
        },
    ];
    let mut notes = Vec::new();
    match shell::find_program("/usr/bin/node") {
        Some(_) => workloads.push(Workload {
            name: "node",
            command: words(&["/usr/bin/node", "-e", &node(size(200_000))]),
            target: 9.0,
            compared: Compared::WithBareOnly,
        }),
        None => notes.push("node is not installed (Debian package nodejs).".to_owned()),
    }
    Ok((workloads, notes))
}

/// How much work there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Full,
    /// Enough to see that it runs.
    Smoke,
}

/// Builds a table and groups it.
fn sql(rows: u32) -> String {
    format!(
        "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, size INT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
           INSERT INTO item SELECT i, 'name' || i, i * 7919 % 1000 FROM n;
         SELECT size % 100, count(*), group_concat(name), max(name)
           FROM item GROUP BY size % 100;"
    )
}

fn python(rounds: u32) -> String {
    format!(
        "import json\n\
         rows = [{{'key': i, 'text': str(i) * 3, 'parts': [i, i + 1]}} for i in range(1000)]\n\
         for _ in range({rounds}):\n    rows = json.loads(json.dumps(rows))\n\
         print(len(rows))"
    )
}

fn perl(rounds: u32) -> String {
    format!("for my $round (1..{rounds}) {{ my %h; $h{{$_ % 5000}} .= \"x$_\" for 1..300000; }}")
}

fn node(buffers: u32) -> String {
    format!(
        "let kept = []; for (let i = 0; i < {buffers}; i++) {{
             const b = Buffer.alloc(8192 + i % 4096); b[0] = 1; if (i % 100 === 0) kept.push(b);
         }} console.log(kept.length)"
    )
}

/// The compiler proper, on headers that are mostly templates.
fn compiler(dir: &Path) -> Result<Vec<String>> {
    let source = dir.join("headers.cc");
    let text = "#include <iostream>\n#include <map>\n#include <regex>\n#include <string>\n\
                int main(int argc, char **argv) {\n\
                \x20   std::map<std::string, int> seen;\n\
                \x20   std::regex word(\"[a-z]+\");\n\
                \x20   for (int i = 0; i < argc; i++)\n\
                \x20       if (std::regex_match(argv[i], word)) seen[argv[i]]++;\n\
                \x20   for (auto &[text, count] : seen) std::cout << text << count << '\\n';\n}\n";
    fs::write(&source, text).with_context(|| source.display().to_string())?;
    let cc1plus = shell::ask(Command::new("g++").arg("-print-prog-name=cc1plus"))?;
    let triplet = shell::ask(Command::new("g++").arg("-print-multiarch"))?;
    let source = source.display().to_string();
    let words = [&cc1plus, "-quiet", "-imultiarch", &triplet, "-D_GNU_SOURCE", "-std=c++17"];
    let rest = [source.as_str(), "-o", "/dev/null"];
    Ok(words.into_iter().chain(rest).map(str::to_owned).collect())
}

/// `git log -p` in a repository of that many commits.
fn git_log(dir: &Path, commits: u32) -> Result<Vec<String>> {
    let repository = dir.join(format!("history-{commits}-{FILES}-{LINES}.git"));
    if !repository.join("refs/heads/main").exists() {
        make_repository(&repository, commits)?;
    }
    let git = shell::find_program("/usr/bin/git").or_else(|| shell::find_program("git"));
    let git = git.context("git is missing; install it")?.display().to_string();
    let git_dir = format!("--git-dir={}", repository.display());
    let words = [git.as_str(), &git_dir, "--no-pager", "log", "-p", "main"];
    Ok(words.map(str::to_owned).to_vec())
}

/// A history in which every commit changes a few lines of three of twenty files.
fn make_repository(repository: &Path, commits: u32) -> Result<()> {
    shell::run(Command::new("git").args(["init", "--quiet", "--bare"]).arg(repository))?;
    let git_dir = format!("--git-dir={}", repository.display());
    let mut import = Command::new("git")
        .args([&git_dir, "fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start git fast-import")?;
    let stdin = import.stdin.take().expect("stdin is piped");
    let mut stream = std::io::BufWriter::new(stdin);
    let mut files = vec![vec![0; LINES]; FILES];
    for commit in 1..=commits {
        let text = commit_of(commit, &mut files);
        stream.write_all(text.as_bytes()).context("git fast-import ended early")?;
    }
    drop(stream);
    let status = import.wait().context("cannot wait for git fast-import")?;
    ensure!(status.success(), "git fast-import ended with {status}");
    Ok(())
}

const FILES: usize = 20;
const LINES: usize = 500;
/// Lines that change in a file.
const HUNK: usize = 8;

/// The next commit, as `git fast-import` takes it. A line knows when it was changed.
fn commit_of(number: u32, files: &mut [Vec<u32>]) -> String {
    let mut text = format!(
        "commit refs/heads/main\ncommitter B <b@example.com> {} +0000\ndata 6\nchange\n",
        1_000_000_000 + number
    );
    let number = number as usize;
    let changed = if number == 1 { 0..FILES } else { 3 * number..3 * number + 3 };
    for file in changed.map(|file| file % FILES) {
        let start = scatter(31 * number + file) % (LINES - HUNK);
        files[file][start..start + HUNK].fill(number as u32);
        let mut content = String::new();
        for (line, changed_in) in files[file].iter().enumerate() {
            let (name, value) = (scatter(7919 * file + line) % 1000, scatter(31 * file + line));
            let _ = writeln!(content, "    let value_{name} = compute({value}, {changed_in});");
        }
        let _ = write!(text, "M 644 inline file-{file}.rs\ndata {}\n{content}\n", content.len());
    }
    text
}

/// A number that looks like chance and is the same every time.
fn scatter(number: usize) -> usize {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_changes_a_hunk_of_three_files() {
        let mut files = vec![vec![0; LINES]; FILES];
        commit_of(1, &mut files);
        let before = files.clone();

        let text = commit_of(2, &mut files);

        let lines = before.iter().flatten().zip(files.iter().flatten());
        assert_eq!(lines.filter(|(before, after)| before != after).count(), 3 * HUNK);
        assert_eq!(text.matches("M 644 inline ").count(), 3);
    }
}
