//! The three address spaces that memtrace must never confuse.
//!
//! ```text
//!   file offset 0x1040 ──PT_LOAD──> SVMA 0x2040 ──load bias 0x7f00_0000_0000──> AVMA 0x7f00_0000_2040
//! ```

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// An actual virtual memory address: where a byte is in the running process.
    Avma
}
address! {
    /// A stated virtual memory address: where the ELF file says the byte wants to be.
    Svma
}
address! {
    /// An offset in bytes from the start of a file.
    FileOffset
}
