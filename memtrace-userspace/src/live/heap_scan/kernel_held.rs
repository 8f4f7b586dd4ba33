//! Pointers that the kernel keeps for a process and gives back with an event.
//!
//! `epoll` and POSIX timers carry a word of the program's choice, and programs like to let it point
//! to the block of a connection. No memory of the process may hold that pointer meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use crate::record::Pid;

/// Where these words can be read.
pub(super) struct KernelHeld {
    timers: PathBuf,
    epolls: Vec<PathBuf>,
}

impl KernelHeld {
    /// Looks through the open files, which can be many: before the process is stopped.
    pub(super) fn of(pid: Pid) -> KernelHeld {
        let process = PathBuf::from(format!("/proc/{}", pid.0));
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let epolls = descriptors.filter(|descriptor| {
            fs::read_link(descriptor.path())
                .is_ok_and(|target| target == Path::new("anon_inode:[eventpoll]"))
        });
        let info = process.join("fdinfo");
        KernelHeld {
            timers: process.join("timers"),
            epolls: epolls.map(|descriptor| info.join(descriptor.file_name())).collect(),
        }
    }

    /// The words. A kernel without these files, or a file that is closed by now, has none.
    pub(super) fn words(&self) -> Vec<u64> {
        let text = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
        let mut words = timer_words(&text(&self.timers));
        words.extend(self.epolls.iter().flat_map(|path| epoll_words(&text(path))));
        words
    }
}

/// `tfd:        5 events:       19 data:     7f12deadbeef  pos:0 ino:61af sdev:7`.
fn epoll_words(info: &str) -> Vec<u64> {
    let data = info.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_once("data:"));
    data.filter_map(|(_, data)| hex(data.split_whitespace().next()?)).collect()
}

/// `signal: 10/00007f12deadbeef`.
fn timer_words(timers: &str) -> Vec<u64> {
    let signals = timers.lines().filter_map(|line| line.strip_prefix("signal:")?.split_once('/'));
    signals.filter_map(|(_, value)| hex(value.trim())).collect()
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_epoll_is_found() {
        let info = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057\n\
            tfd:        6 events:       19 data:     55550000a2c0  pos:0 ino:66 sdev:f\n\
            tfd:        7 events:        1 data: ffffffffffffffff  pos:0 ino:67 sdev:f\n";

        assert_eq!(epoll_words(info), [0x5555_0000_a2c0, u64::MAX]);
    }

    #[test]
    fn value_of_a_timer_is_found() {
        let timers = "ID: 0\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n";

        assert_eq!(timer_words(timers), [0x7fff_86e4_52a8]);
    }
}
