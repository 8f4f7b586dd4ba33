//! Uprobe programs whose links hold many probes, by the kernel's own interface.
//!
//! ```text
//!   object ─ parse, relocate (aya-obj) ─→ BPF_BTF_LOAD, BPF_PROG_LOAD ─→ Programs
//!   Programs + file, process, offsets, cookies ─ BPF_LINK_CREATE ─→ one file descriptor
//! ```
//!
//! A `uprobe_multi` link (Linux 6.6) places all its probes in one system call and removes them
//! within one grace period of the kernel; a perf event is one probe, and waits for its own. aya
//! 0.14 can neither load programs for such links nor make them, so both are done here. The maps
//! stay aya's: it has made them, and the instructions are relocated to its file descriptors.
//!
//! The kernel runs the program in every thread of the link's process and in nobody else: not in a
//! child of `vfork`, although it runs in its parent's memory.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use aya_obj::btf::{Btf, BtfError, BtfFeatures, BtfKind};
use aya_obj::generated::{
    BPF_F_UPROBE_MULTI_RETURN, BPF_OBJ_NAME_LEN, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn,
    bpf_prog_type,
};
use aya_obj::relocation::EbpfRelocationError;
use aya_obj::{Function, Object, ParseError, ProgramSection, copy_instructions};
use memtrace_common::addr::FileOffset;
use memtrace_common::call::Call;
use rayon::prelude::*;
use thiserror::Error;

use super::probes::Point;
use crate::record::Pid;

/// The verifier's log says at its end what it objects to. A buffer that is too small is filled
/// with the end (since 6.4).
const LOG_BYTES: usize = 8 << 10;

/// The verifier gives up when a signal is pending, and may be asked again.
const ATTEMPTS: u32 = 5;

/// `mov r0, 0; exit`.
const RETURN_0: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Why programs could not be loaded, or probes not be placed.
#[derive(Debug, Error)]
pub(super) enum MultiError {
    /// The object cannot be read.
    #[error("cannot read the kernel object: {0}")]
    Parse(#[from] ParseError),
    /// The object's types cannot be prepared.
    #[error("cannot prepare the types of the kernel object: {0}")]
    Types(#[from] BtfError),
    /// A program refers to something that is not there.
    #[error("cannot link the kernel object: {0:?}")]
    Relocate(#[from] EbpfRelocationError),
    /// The kernel refused the object's types.
    #[error("cannot load the types of the kernel object: {0}")]
    TypesRefused(io::Error),
    /// The kernel refused a program.
    #[error("cannot load {program}: {source}; the verifier's log ends with\n{log}\n")]
    ProgramRefused {
        /// Which.
        program: String,
        /// The kernel's answer.
        source: io::Error,
        /// What it says about it.
        log: String,
    },
    /// The kernel refused a link.
    #[error("cannot place uprobes: {0}")]
    LinkRefused(io::Error),
}

/// What a kernel lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Lacking {
    /// All of it.
    #[error("no such links, which came with Linux 6.6")]
    Links,
    /// Links that find their process by more than one of its threads.
    #[error("only links that see a process's first thread alone, as before Linux 6.10")]
    OtherThreads,
}

/// When probes are hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// When their instruction is about to run.
    Entry,
    /// When the function that begins there returns.
    Return,
}

impl Moment {
    fn flags(self) -> u32 {
        match self {
            Moment::Entry => 0,
            Moment::Return => BPF_F_UPROBE_MULTI_RETURN,
        }
    }
}

/// The uprobe programs of an object, by name.
pub(super) struct Programs(HashMap<String, OwnedFd>);

impl Programs {
    /// Loads those uprobe programs of `object` that are `wanted`, with these maps, by name.
    ///
    /// Not its uretprobe programs: links of returns take the same ones.
    pub(super) fn load(
        object: &[u8],
        maps: &HashMap<String, OwnedFd>,
        wanted: impl Fn(&str) -> bool + Sync,
    ) -> Result<Self, MultiError> {
        let mut object = Object::parse(object)?;
        // Kernels with these links lack nothing that BTF may contain.
        let features = BtfFeatures::new(true, true, true, true, true, true, true, true);
        let types = object
            .fixup_and_sanitize_btf(&features)?
            .map(|types| load_types(&types.to_bytes()).map_err(MultiError::TypesRefused))
            .transpose()?;
        let text_sections = object.functions.keys().map(|(section, _)| *section).collect();
        let stated = std::mem::take(&mut object.maps);
        let made = stated
            .iter()
            .filter_map(|(name, map)| Some((name.as_str(), maps.get(name)?.as_raw_fd(), map)));
        object.relocate_maps(made, &text_sections)?;
        object.relocate_calls(&text_sections)?;

        // The kernel verifies side by side.
        let programs: Result<_, MultiError> = object
            .programs
            .par_iter()
            .filter(|(name, program)| {
                matches!(program.section, ProgramSection::UProbe { .. }) && wanted(name)
            })
            .map(|(name, program)| {
                let function = object
                    .functions
                    .get(&program.function_key())
                    .expect("a program without a function cannot be linked");
                let code = Code {
                    instructions: &function.instructions,
                    license: &program.license,
                    types: types.as_ref().map(|types| (types, function)),
                };
                match load_program(name, &code, &mut []) {
                    Ok(fd) => Ok((name.clone(), fd)),
                    Err(source) => Err(refused(name, &code, source)),
                }
            })
            .collect();
        programs.map(Programs)
    }

    /// The same and others.
    pub(super) fn extend(&mut self, others: Programs) {
        self.0.extend(others.0);
    }

    /// Whether the program `name` is loaded.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Places probes of the program `name` in a file for one process, all or none.
    pub(super) fn attach(
        &self,
        name: &str,
        moment: Moment,
        pid: Pid,
        file: &CStr,
        points: &[Point],
    ) -> Result<OwnedFd, MultiError> {
        let program = self.0.get(name).expect("the object has this program");
        create_link(program, moment, file, pid.0, points).map_err(MultiError::LinkRefused)
    }
}

/// Whether this kernel has links that see all threads of a process.
///
/// `Err` means that it could not be found out, for want of a privilege as a rule. Nothing stays in
/// the kernel: it refuses both links, and how it does is the answer.
pub fn support() -> io::Result<Result<(), Lacking>> {
    let instructions = copy_instructions(&RETURN_0).expect("two whole instructions");
    let code = Code { instructions: &instructions, license: c"GPL", types: None };
    let program = load_program("memtrace_asks", &code, &mut [])?;
    let point = Point { offset: FileOffset(0), cookie: Call::Ignore.cookie() };
    let answer = |pid| {
        create_link(&program, Moment::Entry, c"/", pid, &[point]).map_err(|e| e.raw_os_error())
    };
    // A kernel with these links looks at the file, and a directory cannot be probed.
    if !matches!(answer(0), Err(Some(libc::EBADF))) {
        return Ok(Err(Lacking::Links));
    }
    // The mended filter refuses a negative process id; the one before looked for its thread.
    if !matches!(answer(u32::MAX), Err(Some(libc::EINVAL))) {
        return Ok(Err(Lacking::OtherThreads));
    }
    Ok(Ok(()))
}

/// Whether this kernel lets its functions be watched (`fentry`).
///
/// `Err` is why not, as the kernel says it. The program that is attached for it does nothing, and is
/// gone when this returns.
pub fn can_watch_functions(btf: &[u8]) -> io::Result<()> {
    let unknown = |_| io::Error::from_raw_os_error(libc::ENOENT);
    let types = Btf::parse(btf, aya::Endianness::default()).map_err(|_| unknown(()))?;
    let function =
        types.id_by_type_name_kind("__x64_sys_munmap", BtfKind::Func).map_err(|_| unknown(()))?;
    let instructions = copy_instructions(&RETURN_0).expect("two whole instructions");
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
    attributes.__bindgen_anon_3.expected_attach_type = bpf_attach_type::BPF_TRACE_FENTRY as u32;
    attributes.__bindgen_anon_3.insns = address(&instructions);
    attributes.__bindgen_anon_3.insn_cnt = count(&instructions);
    attributes.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    attributes.__bindgen_anon_3.attach_btf_id = function;
    // SAFETY: addresses and counts are those of `instructions` and of a constant.
    let program = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &attributes) }?;
    let mut attributes = no_attributes();
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: a program, and no name.
    unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &attributes) }.map(drop)
}

/// A program as the kernel takes it.
struct Code<'a> {
    instructions: &'a [bpf_insn],
    license: &'a CStr,
    /// Types, and what is known of this program's: callbacks of `bpf_loop` need it.
    types: Option<(&'a OwnedFd, &'a Function)>,
}

/// Asks once more for a program that the kernel has refused, this time why.
fn refused(program: &str, code: &Code<'_>, source: io::Error) -> MultiError {
    let mut log = vec![0; LOG_BYTES];
    // Its answer is known, or that the log is longer.
    let _ = load_program(program, code, &mut log);
    let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_owned();
    MultiError::ProgramRefused { program: program.to_owned(), source, log }
}

fn load_types(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_7.btf = address(btf);
    attributes.__bindgen_anon_7.btf_size = count(btf);
    // SAFETY: address and size are those of `btf`.
    unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &attributes) }
}

/// Loads a program; the verifier's log goes into `log`, if there is room in it.
fn load_program(name: &str, code: &Code<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let Code { instructions, license, types } = code;
    let mut attributes = no_attributes();
    // SAFETY: all fields of this union's other members are zero, and so are this one's.
    let shown = unsafe { &mut attributes.__bindgen_anon_3.prog_name };
    // It ends with a zero.
    for (to, from) in shown.iter_mut().zip(name.bytes().take(BPF_OBJ_NAME_LEN as usize - 1)) {
        *to = from as _;
    }
    attributes.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
    attributes.__bindgen_anon_3.expected_attach_type =
        bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    attributes.__bindgen_anon_3.insns = address(instructions);
    attributes.__bindgen_anon_3.insn_cnt = count(instructions);
    attributes.__bindgen_anon_3.license = license.as_ptr() as u64;
    let (functions, lines);
    if let Some((types, function)) = types {
        functions = function.func_info.func_info_bytes();
        lines = function.line_info.line_info_bytes();
        attributes.__bindgen_anon_3.prog_btf_fd = types.as_raw_fd() as u32;
        attributes.__bindgen_anon_3.func_info = address(&functions);
        attributes.__bindgen_anon_3.func_info_cnt = function.func_info.len() as u32;
        attributes.__bindgen_anon_3.func_info_rec_size = function.func_info_rec_size as u32;
        attributes.__bindgen_anon_3.line_info = address(&lines);
        attributes.__bindgen_anon_3.line_info_cnt = function.line_info.len() as u32;
        attributes.__bindgen_anon_3.line_info_rec_size = function.line_info_rec_size as u32;
    }
    if !log.is_empty() {
        attributes.__bindgen_anon_3.log_level = 1;
        attributes.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
        attributes.__bindgen_anon_3.log_size = count(log);
    }
    let mut attempt = 1;
    loop {
        // SAFETY: addresses and counts are those of `code` and `log`, which is borrowed mutably.
        match unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &attributes) } {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < ATTEMPTS => {
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn create_link(
    program: &OwnedFd,
    moment: Moment,
    file: &CStr,
    pid: u32,
    points: &[Point],
) -> io::Result<OwnedFd> {
    let offsets: Vec<u64> = points.iter().map(|point| point.offset.0).collect();
    let cookies: Vec<u64> = points.iter().map(|point| point.cookie).collect();
    let mut attributes = no_attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    attributes.link_create.__bindgen_anon_3.uprobe_multi.path = file.as_ptr() as u64;
    attributes.link_create.__bindgen_anon_3.uprobe_multi.offsets = address(&offsets);
    attributes.link_create.__bindgen_anon_3.uprobe_multi.cookies = address(&cookies);
    attributes.link_create.__bindgen_anon_3.uprobe_multi.cnt = count(points);
    attributes.link_create.__bindgen_anon_3.uprobe_multi.flags = moment.flags();
    attributes.link_create.__bindgen_anon_3.uprobe_multi.pid = pid;
    // SAFETY: the path ends with a zero; both arrays have as many elements as `points`.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &attributes) }
}

fn no_attributes() -> bpf_attr {
    // SAFETY: integers all through; the kernel takes zero for "not given".
    unsafe { std::mem::zeroed() }
}

fn address<T>(items: &[T]) -> u64 {
    items.as_ptr() as u64
}

fn count<T>(items: &[T]) -> u32 {
    items.len() as u32
}

/// The system call, for commands that make a file descriptor.
///
/// # Safety
/// The addresses in `attributes` must be valid for what `command` reads and writes there.
unsafe fn bpf(command: bpf_cmd, attributes: &bpf_attr) -> io::Result<OwnedFd> {
    let attributes = std::ptr::from_ref(attributes);
    // SAFETY: `attributes` is as large as its type, and what it points to is the caller's promise.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<bpf_attr>()) };
    match i32::try_from(fd) {
        // SAFETY: the command has made this descriptor for us.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}
