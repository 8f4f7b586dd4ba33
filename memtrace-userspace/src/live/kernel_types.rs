//! What memtrace needs of the running kernel, from its BTF.
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux`. Out: whether the kernel has the parts of BPF that
//! the programs use, and [`KernelOffsets`], where it keeps the members of its structures. BTF
//! rather than the version says what there is, because distributions bring parts of BPF to older
//! kernels; the version decides only where there is no BTF.

mod btf;

use std::fmt;

use memtrace_common::config::KernelOffsets;
use thiserror::Error;

use self::btf::Btf;
use super::kernel_version::KernelVersion;

/// Why the kernel's types could not be read.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum KernelTypesError {
    /// Not BTF, cut short, or a kind of type that this version does not know.
    #[error("the kernel's BTF is malformed at byte {at}")]
    Malformed {
        /// Offset in bytes of what could not be read.
        at: usize,
    },
    /// The kernel is too old.
    #[error("{0}; use Linux 5.17 or later")]
    Missing(MissingFeatures),
    /// A structure or member that memtrace needs does not exist.
    #[error("this kernel has no `{structure}.{member}`; memtrace knows Linux 5.17 to 6.18")]
    NoMember {
        /// The structure.
        structure: &'static str,
        /// The member.
        member: &'static str,
    },
}

/// A part of BPF that the kernel programs cannot do without.
#[derive(Debug, PartialEq, Eq)]
pub struct Feature {
    /// What the kernel's documentation calls it.
    pub name: &'static str,
    /// The first release of Linux that has it.
    pub since: KernelVersion,
    /// The value of an `enum` in the kernel that came with it.
    enumerator: &'static str,
}

/// What the programs need, the oldest first.
pub static FEATURES: [Feature; 4] = [
    Feature {
        name: "BTF tracepoints",
        since: KernelVersion::new(5, 5, 0),
        enumerator: "BPF_TRACE_RAW_TP",
    },
    Feature {
        name: "BPF ring buffers",
        since: KernelVersion::new(5, 8, 0),
        enumerator: "BPF_MAP_TYPE_RINGBUF",
    },
    Feature {
        name: "bpf_get_attach_cookie",
        since: KernelVersion::new(5, 15, 0),
        enumerator: "BPF_FUNC_get_attach_cookie",
    },
    Feature { name: "bpf_loop", since: KernelVersion::new(5, 17, 0), enumerator: "BPF_FUNC_loop" },
];

/// What a kernel lacks, the oldest first; not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingFeatures(Vec<&'static Feature>);

impl fmt::Display for MissingFeatures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("this kernel is too old for memtrace: it has no ")?;
        for (nth, Feature { name, since, .. }) in self.0.iter().enumerate() {
            let separator = if nth == 0 { "" } else { ", no " };
            write!(out, "{separator}{name} (new in {}.{})", since.major, since.minor)?;
        }
        Ok(())
    }
}

/// Checks that the kernel has all [`FEATURES`], by its BTF or, without BTF, by its release.
///
/// What neither tells is left to the kernel to refuse.
pub fn require_features(btf: Option<&[u8]>, release: &str) -> Result<(), KernelTypesError> {
    let has = match (btf, KernelVersion::parse(release)) {
        (Some(btf), _) => {
            Btf::parse(btf)?.has_enumerators(FEATURES.each_ref().map(|it| it.enumerator))?
        }
        (None, Some(version)) => FEATURES.each_ref().map(|it| version >= it.since),
        (None, None) => return Ok(()),
    };
    let missing = FEATURES.iter().zip(has).filter(|(_, has)| !has).map(|(feature, _)| feature);
    let missing: Vec<_> = missing.collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(KernelTypesError::Missing(MissingFeatures(missing)))
    }
}

/// Finds the offsets that the kernel programs need.
pub fn kernel_offsets(btf: &[u8]) -> Result<KernelOffsets, KernelTypesError> {
    let mut offsets = KernelOffsets::default();
    let wanted: &mut [(&'static str, &'static str, &mut u32, bool)] = &mut [
        ("task_struct", "pid", &mut offsets.task_pid, false),
        ("task_struct", "tgid", &mut offsets.task_tgid, false),
        ("task_struct", "mm", &mut offsets.task_mm, false),
        ("task_struct", "signal", &mut offsets.task_signal, false),
        ("task_struct", "utask", &mut offsets.task_utask, false),
        ("signal_struct", "live", &mut offsets.signal_live, false),
        ("uprobe_task", "return_instances", &mut offsets.utask_return_instances, false),
        ("return_instance", "stack", &mut offsets.return_instance_stack, false),
        ("return_instance", "orig_ret_vaddr", &mut offsets.return_instance_address, false),
        ("return_instance", "next", &mut offsets.return_instance_next, false),
        ("mm_struct", "uprobes_state", &mut offsets.mm_uprobes_state, false),
        ("uprobes_state", "xol_area", &mut offsets.uprobes_xol_area, false),
        ("xol_area", "vaddr", &mut offsets.xol_area_address, false),
    ];
    let btf = Btf::parse(btf)?;
    btf.for_each_member(|structure, member, offset_bytes| {
        for (wanted_structure, wanted_member, offset, found) in wanted.iter_mut() {
            if structure == wanted_structure.as_bytes() && member == wanted_member.as_bytes() {
                **offset = offset_bytes;
                *found = true;
            }
        }
    })?;
    match wanted.iter().find(|(.., found)| !found) {
        Some((structure, member, ..)) => Err(KernelTypesError::NoMember { structure, member }),
        None => Ok(offsets),
    }
}

#[cfg(test)]
mod tests {
    use super::btf::tests::btf;
    use super::*;

    #[test]
    fn missing_features_are_named_with_the_release_that_brought_them() {
        let sentence = |release: &str| require_features(None, release).unwrap_err().to_string();

        assert_eq!(
            sentence("5.10.0-35-amd64"),
            "this kernel is too old for memtrace: it has no bpf_get_attach_cookie (new in 5.15), no \
             bpf_loop (new in 5.17); use Linux 5.17 or later"
        );
        assert_eq!(
            sentence("5.16.20"),
            "this kernel is too old for memtrace: it has no bpf_loop (new in 5.17); use Linux 5.17 \
             or later"
        );
        assert!(
            sentence("4.19.0-27-amd64").contains("no BTF tracepoints (new in 5.5), no BPF ring")
        );
    }

    #[test]
    fn kernel_without_btf_is_judged_by_its_release() {
        assert_eq!(require_features(None, "5.17.0"), Ok(()));
        assert_eq!(require_features(None, "6.18.44-amd64"), Ok(()));
        assert_eq!(require_features(None, "no version at all"), Ok(()));
    }

    #[test]
    fn btf_counts_for_more_than_the_release() {
        let all = FEATURES.each_ref().map(|feature| feature.enumerator);
        let with_backports = btf("task_struct", &[], &all);
        let without_bpf_loop = btf("task_struct", &[], &all[..3]);

        assert_eq!(require_features(Some(&with_backports), "5.14.0-503.el9"), Ok(()));
        assert_eq!(
            require_features(Some(&without_bpf_loop), "6.18.0"),
            Err(KernelTypesError::Missing(MissingFeatures(vec![&FEATURES[3]])))
        );
    }

    #[test]
    fn missing_member_is_named() {
        let bytes = btf("task_struct", &[("pid", 64)], &[]);

        let error = kernel_offsets(&bytes);

        let missing = KernelTypesError::NoMember { structure: "task_struct", member: "tgid" };
        assert_eq!(error, Err(missing));
    }

    #[test]
    fn btf_cut_anywhere_is_an_error_and_no_panic() {
        let bytes = btf("task_struct", &[("pid", 64), ("tgid", 96)], &["BPF_FUNC_loop"]);

        for length in 0..bytes.len() {
            assert!(kernel_offsets(&bytes[..length]).is_err());
            assert!(require_features(Some(&bytes[..length]), "6.18").is_err());
        }
    }

    #[test]
    fn offsets_of_the_running_kernel_are_found() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };

        let offsets = kernel_offsets(&bytes).expect("the kernel has its own types");

        assert_eq!(require_features(Some(&bytes), ""), Ok(()));
        assert!(offsets.task_pid != 0 && offsets.task_tgid == offsets.task_pid + 4);
    }
}
