//! The virtual machine: qemu's command line.

use std::{fs, path::Path, process::Command};

use anyhow::Result;

use super::qemu::Qemu;

/// How long a machine may run. Emulated, the selected tests take 5 to 15 minutes, and two or three
/// times that on a host with other work, of which another machine may be a part.
const LIMIT_SECONDS: u32 = 40 * 60;

/// A command that boots the kernel and whose stdout is the machine's second serial line.
///
/// It ends with status 0 when the machine turns itself off or panics, and fails after
/// [`LIMIT_SECONDS`].
pub(super) fn command(
    qemu: &Qemu,
    image: &Path,
    initramfs: &Path,
    console: &Path,
) -> Result<Command> {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg(LIMIT_SECONDS.to_string());
    qemu.add_to(&mut command)?;
    if has_virtualization() {
        command.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        // One thread for all processors. With a thread each, qemu before 8.1 may go on running code
        // that another processor has patched (its commit deba78709ae8 tells how), and Linux, which
        // patches itself whenever a tracepoint is attached, dies of a left-over `int3`.
        // `max` has RDRAND, without which the first random number waits for entropy; five levels
        // of page tables would only be slower.
        command.args(["-accel", "tcg,thread=single", "-cpu", "max,la57=off"]);
    }
    command.args(["-smp", "2", "-m", "2G", "-nodefaults", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
    // A panic reboots at once, which `-no-reboot` turns into the end.
    command.args(["-append", "console=ttyS0 loglevel=4 panic=-1"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-serial", "stdio"]).stdin(std::process::Stdio::null());
    Ok(command)
}

/// Whether KVM can be used and is worth it.
///
/// In a guest without nested virtualization `/dev/kvm` may be there all the same; what it then
/// runs hangs in the firmware.
fn has_virtualization() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let extension = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    extension && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}
