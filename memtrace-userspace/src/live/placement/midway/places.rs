//! Registers and words of the frame, and the sets of them that hold one value.

use iced_x86::Register as Iced;
use memtrace_common::midway::Register;

/// The most words of a frame that are followed.
pub(super) const MAX_FRAME_WORDS: u64 = 64;

/// A register, or a word of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Register(Register),
    /// So many words below the return address, from 1 on.
    Word(u64),
}

impl Place {
    pub(super) fn register(self) -> Option<Register> {
        match self {
            Place::Register(register) => Some(register),
            Place::Word(_) => None,
        }
    }
}

/// All places of one value, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    registers: u16,
    words: u64,
}

impl Places {
    pub(super) const NONE: Places = Places { registers: 0, words: 0 };

    pub(super) const fn only(register: Register) -> Places {
        Places { registers: 1 << register as u16, words: 0 }
    }

    pub(super) fn has(self, place: Place) -> bool {
        match place {
            Place::Register(register) => self.registers >> register as u16 & 1 == 1,
            Place::Word(word) => self.words >> (word - 1) & 1 == 1,
        }
    }

    pub(super) fn set(&mut self, place: Place, has: bool) {
        match place {
            Place::Register(register) => {
                self.registers &= !(1 << register as u16);
                self.registers |= u16::from(has) << register as u16;
            }
            Place::Word(word) => {
                self.words &= !(1 << (word - 1));
                self.words |= u64::from(has) << (word - 1);
            }
        }
    }

    /// A register among them.
    pub(super) fn register(self) -> Option<Register> {
        REGISTERS.into_iter().find(|register| self.has(Place::Register(*register)))
    }

    /// Those that are in both.
    pub(super) fn both(self, other: Places) -> Places {
        Places { registers: self.registers & other.registers, words: self.words & other.words }
    }
}

/// What a call may leave anything in (System V ABI).
pub(super) const CALLER_SAVED: [Register; 9] = [
    Register::Rax,
    Register::Rcx,
    Register::Rdx,
    Register::Rsi,
    Register::Rdi,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// In the order in which they are preferred.
const REGISTERS: [Register; 15] = [
    Register::Rdi,
    Register::Rsi,
    Register::Rbx,
    Register::Rbp,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
    Register::Rax,
    Register::Rcx,
    Register::Rdx,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// A 64-bit register by iced's name; `None` for others and for `rsp`.
pub(super) fn register(register: Iced) -> Option<Register> {
    Some(match register {
        Iced::R15 => Register::R15,
        Iced::R14 => Register::R14,
        Iced::R13 => Register::R13,
        Iced::R12 => Register::R12,
        Iced::RBP => Register::Rbp,
        Iced::RBX => Register::Rbx,
        Iced::R11 => Register::R11,
        Iced::R10 => Register::R10,
        Iced::R9 => Register::R9,
        Iced::R8 => Register::R8,
        Iced::RAX => Register::Rax,
        Iced::RCX => Register::Rcx,
        Iced::RDX => Register::Rdx,
        Iced::RSI => Register::Rsi,
        Iced::RDI => Register::Rdi,
        _ => return None,
    })
}
