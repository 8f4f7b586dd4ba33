//! What the kernel programs and the daemon share.
//!
//! Everything here is `no_std`, free of I/O and free of `unsafe`: address newtypes, the layout of
//! the events in the ring buffer, the layout of the maps, the counters, and [`unwind::step`], the
//! one function that walks a stack frame both in the kernel and in the unit tests.
#![no_std]
#![deny(unsafe_code)]

pub mod addr;
pub mod call;
pub mod config;
pub mod counter;
pub mod event;
pub mod midway;
pub mod unwind;
