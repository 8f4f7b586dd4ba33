//! The table of processes, where there is more than one.
//!
//! ```text
//!       pid  inside  allocated       live       peak   resident    ended  program
//!      4711       7   12.0 MiB    4.0 MiB    6.0 MiB   21.0 MiB            server --port=80
//!      4718      13    1.0 MiB        0 B    512 KiB            3.2 s  sh -c true
//! ```

use crate::pipeline::snapshot::ProcessUsage;
use crate::views::frames::base_name;
use crate::views::layout::cut;
use crate::views::printable::printable;
use crate::views::quantity::{bytes, duration};
use crate::views::summary::since_start;

/// The fewest cells for the name of a program.
const MIN_NAME: usize = 8;

/// A head and a line for each of at most `most` processes, those first that allocated most.
pub(super) fn table(processes: &[ProcessUsage], most: usize, width: usize) -> Vec<String> {
    // Process ids are the same inside and outside on most hosts.
    let has_inner = processes.iter().any(|process| process.inner_pid().is_some());
    let inside = |text: &str| if has_inner { format!(" {text:>7}") } else { String::new() };
    let columns = |pid: &str, inner: &str, values: [&str; 5], name: &str| {
        let [allocated, live, peak, resident, ended] = values;
        let fixed = format!(
            "  {pid:>8}{} {allocated:>10} {live:>10} {peak:>10} {resident:>10} {ended:>7}  ",
            inside(inner)
        );
        let room = width.saturating_sub(fixed.len()).max(MIN_NAME);
        format!("{fixed}{}", cut(name, room))
    };
    let mut sorted: Vec<&ProcessUsage> = processes.iter().collect();
    // Stable: those that did the same stay in order of appearance.
    sorted.sort_by_key(|process| std::cmp::Reverse(process.heap.allocated_bytes));
    let titles = ["allocated", "live", "peak", "resident", "ended"];
    let mut lines = vec![columns("pid", "inside", titles, "program")];
    lines.extend(sorted.into_iter().take(most).map(|process| {
        let inner = process.inner_pid().map(|pid| pid.to_string()).unwrap_or_default();
        let resident = process.resident_bytes.map(bytes).unwrap_or_default();
        let ended = process.ended.map(|time| duration(since_start(time))).unwrap_or_default();
        let heap = &process.heap;
        let values = [bytes(heap.allocated_bytes), bytes(heap.live_bytes), bytes(heap.peak_bytes)];
        let [allocated, live, peak] = &values;
        columns(
            &process.pid.0.to_string(),
            &inner,
            [allocated, live, peak, &resident, &ended],
            &program(process),
        )
    }));
    lines
}

/// The program's name and its arguments, which often tell workers apart.
fn program(process: &ProcessUsage) -> String {
    let exe = printable(&process.exe);
    let mut text = base_name(&exe).to_owned();
    for argument in process.command.iter().skip(1) {
        text.push(' ');
        text.push_str(&printable(argument));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::{Namespaces, Pid, Time};
    use crate::views::fixture;
    use crate::views::layout::width;

    fn processes() -> Vec<ProcessUsage> {
        let server = fixture::snapshot().processes.remove(0);
        let mut worker = ProcessUsage {
            pid: Pid(4250),
            exe: b"/srv/app/wor\x1bker".to_vec(),
            ended: Some(Time(3_200_000_000)),
            resident_bytes: None,
            ..server.clone()
        };
        worker.heap.allocated_bytes *= 2;
        vec![server, worker]
    }

    #[test]
    fn process_that_allocated_most_comes_first() {
        assert_eq!(
            table(&processes(), 20, 80).join("\n"),
            "       pid  allocated       live       peak   resident   ended  program\n".to_owned()
                + "      4250  248.0 MiB   14.0 MiB   54.0 MiB              3.2 s  wor\\x1bker --po…\n"
                + "      4242  124.0 MiB   14.0 MiB   54.0 MiB   90.0 MiB          server --port=80"
        );
    }

    #[test]
    fn ids_inside_have_a_column_if_there_are_any() {
        let mut processes = processes();
        processes[0].namespaces = Some(Arc::new(Namespaces {
            pid: Pid(4242),
            inner_pids: vec![12, 7],
            cgroup: None,
            container: None,
        }));

        let lines = table(&processes, 20, 80);

        assert!(lines[0].starts_with("       pid  inside  allocated"), "{}", lines[0]);
        assert!(lines[2].starts_with("      4242       7  124.0 MiB"), "{}", lines[2]);
        assert!(lines.iter().all(|line| width(line) <= 80), "{lines:?}");
    }

    #[test]
    fn no_more_than_asked_for_are_shown() {
        assert_eq!(table(&processes(), 1, 80).len(), 2);
    }
}
