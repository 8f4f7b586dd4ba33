//! The call frame instructions of one function, run to rules.
//!
//! Only four columns of DWARF's register table matter to the walk: the CFA, `rbp`, the return
//! address and `rsp`; everything else is parsed and dropped. gimli decodes the instructions, but
//! its evaluator is used by the tests only: it runs the instructions of the CIE anew for every
//! function, which a hostile file turns into quadratic time, and takes a rule that was never set
//! for one of the ABI's choosing.
//!
//! ```text
//!   advance_loc 1; def_cfa_offset 16; offset rbp −16; advance_loc 3; def_cfa_register rbp
//!
//!   pc   0 .. 1   CFA = rsp + 8                     State::emit → one row
//!   pc   1 .. 4   CFA = rsp + 16, rbp at CFA − 16   State::emit → one row
//!   pc   4 .. end CFA = rbp + 16, rbp at CFA − 16   State::emit → one row
//! ```

use gimli::{
    BaseAddresses, CallFrameInstruction, CommonInformationEntry, FrameDescriptionEntry, Register,
    UnwindExpression, UnwindSection, X86_64,
};

use super::entries::Bytes;

/// An entry that contradicts itself or the format. The cause helps nobody: it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl From<gimli::Error> for Broken {
    fn from(_: gimli::Error) -> Broken {
        Broken
    }
}

/// Most states that a program may remember at once. gimli and libunwind allow 4 and 8.
const MAX_REMEMBERED: usize = 64;

/// How to compute the CFA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    /// `register + offset`.
    Register { register: Register, offset: i64 },
    /// The value of a DWARF expression.
    Expression(UnwindExpression<usize>),
}

/// Where a register of the caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Nothing was said.
    Unset,
    /// It is lost.
    Undefined,
    /// It is still in the register.
    SameValue,
    /// At `CFA + offset`.
    Offset(i64),
    /// At the address that a DWARF expression computes.
    Expression(UnwindExpression<usize>),
    /// Somewhere that a row cannot say: another register, or a computed value.
    Elsewhere,
}

/// The columns of DWARF's register table that the walk needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) cfa: Cfa,
    pub(super) fp: Rule,
    pub(super) sp: Rule,
    pub(super) return_address: Rule,
}

impl State {
    const START: State = State {
        cfa: Cfa::Register { register: Register(0), offset: 0 },
        fp: Rule::Unset,
        sp: Rule::Unset,
        return_address: Rule::Unset,
    };

    fn column(&mut self, register: Register) -> Option<&mut Rule> {
        match register {
            X86_64::RBP => Some(&mut self.fp),
            X86_64::RSP => Some(&mut self.sp),
            X86_64::RA => Some(&mut self.return_address),
            _ => None,
        }
    }

    fn set(&mut self, register: Register, rule: Rule) {
        if let Some(column) = self.column(register) {
            *column = rule;
        }
    }
}

/// The factors by which a CIE scales its operands.
struct Factors {
    code: u64,
    data: i64,
}

impl Factors {
    fn of(cie: &CommonInformationEntry<Bytes<'_>>) -> Factors {
        Factors { code: cie.code_alignment_factor(), data: cie.data_alignment_factor() }
    }

    fn data(&self, factored: i64) -> Result<i64, Broken> {
        factored.checked_mul(self.data).ok_or(Broken)
    }

    fn data_unsigned(&self, factored: u64) -> Result<i64, Broken> {
        self.data(i64::try_from(factored).map_err(|_| Broken)?)
    }
}

/// What an instruction does to the location.
enum Flow {
    /// The rules change at this location.
    Stay,
    /// The rules so far hold up to this address (SVMA).
    Advance(u64),
}

/// Runs the instructions that start every function of `cie`.
pub(super) fn run_initial<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    bases: &BaseAddresses,
    cie: &CommonInformationEntry<Bytes<'data>>,
) -> Result<State, Broken> {
    if cie.return_address_register() != X86_64::RA || cie.address_size() != 8 {
        return Err(Broken);
    }
    let mut machine = Machine {
        factors: Factors::of(cie),
        location: 0,
        state: State::START,
        initial: None,
        remembered: Vec::new(),
    };
    let mut instructions = cie.instructions(section, bases);
    while let Some(instruction) = &instructions.next()? {
        match machine.execute(instruction)? {
            Flow::Stay => {}
            Flow::Advance(_) => return Err(Broken),
        }
    }
    Ok(machine.state)
}

/// Runs the program of `fde`; `emit` gets every (first, one past the last, rules) in order.
///
/// Addresses are SVMAs within the FDE's range, and no range is empty. Ranges that were emitted
/// before the program turned out to be broken are worthless.
pub(super) fn run<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    bases: &BaseAddresses,
    fde: &FrameDescriptionEntry<Bytes<'data>>,
    initial: State,
    mut emit: impl FnMut(u64, u64, &State),
) -> Result<(), Broken> {
    let end = fde.initial_address().checked_add(fde.len()).ok_or(Broken)?;
    let mut machine = Machine {
        factors: Factors::of(fde.cie()),
        location: fde.initial_address(),
        state: initial,
        initial: Some(initial),
        remembered: Vec::new(),
    };
    let mut instructions = fde.instructions(section, bases);
    loop {
        // Matched in place: moving the instruction out waits for the stores that made it, and
        // libc takes 1.6 ms instead of 1.1.
        let instruction = instructions.next();
        let instruction = match &instruction {
            Ok(Some(instruction)) => instruction,
            Ok(None) => break,
            Err(_) => return Err(Broken),
        };
        let next = match machine.execute(instruction)? {
            Flow::Stay => continue,
            Flow::Advance(next) => next,
        };
        let first = machine.location;
        if first < end.min(next) {
            emit(first, end.min(next), &machine.state);
        }
        machine.location = next;
    }
    if machine.location < end {
        emit(machine.location, end, &machine.state);
    }
    Ok(())
}

/// A running program.
struct Machine {
    factors: Factors,
    /// Where the current rules start (SVMA).
    location: u64,
    state: State,
    /// What `DW_CFA_restore` goes back to; `None` while these are being computed.
    initial: Option<State>,
    remembered: Vec<State>,
}

impl Machine {
    fn execute(&mut self, instruction: &CallFrameInstruction<usize>) -> Result<Flow, Broken> {
        use CallFrameInstruction as I;

        match *instruction {
            I::SetLoc { address } => {
                if address < self.location {
                    return Err(Broken);
                }
                return Ok(Flow::Advance(address));
            }
            I::AdvanceLoc { delta } => {
                let bytes = u64::from(delta).checked_mul(self.factors.code).ok_or(Broken)?;
                let next = self.location.checked_add(bytes).ok_or(Broken)?;
                return Ok(Flow::Advance(next));
            }
            I::DefCfa { register, offset } => {
                let offset = i64::try_from(offset).map_err(|_| Broken)?;
                self.state.cfa = Cfa::Register { register, offset };
            }
            I::DefCfaSf { register, factored_offset } => {
                let offset = self.factors.data(factored_offset)?;
                self.state.cfa = Cfa::Register { register, offset };
            }
            I::DefCfaRegister { register: new } => match &mut self.state.cfa {
                Cfa::Register { register, .. } => *register = new,
                Cfa::Expression(_) => return Err(Broken),
            },
            I::DefCfaOffset { offset } => {
                self.set_cfa_offset(i64::try_from(offset).map_err(|_| Broken)?)?;
            }
            I::DefCfaOffsetSf { factored_offset } => {
                self.set_cfa_offset(self.factors.data(factored_offset)?)?;
            }
            I::DefCfaExpression { expression } => self.state.cfa = Cfa::Expression(expression),
            I::Undefined { register } => self.state.set(register, Rule::Undefined),
            I::SameValue { register } => self.state.set(register, Rule::SameValue),
            I::Offset { register, factored_offset } => {
                let offset = self.factors.data_unsigned(factored_offset)?;
                self.state.set(register, Rule::Offset(offset));
            }
            I::OffsetExtendedSf { register, factored_offset } => {
                let offset = self.factors.data(factored_offset)?;
                self.state.set(register, Rule::Offset(offset));
            }
            I::Expression { register, expression } => {
                self.state.set(register, Rule::Expression(expression));
            }
            I::ValOffset { register, .. }
            | I::ValOffsetSf { register, .. }
            | I::Register { dest_register: register, .. }
            | I::ValExpression { register, .. } => self.state.set(register, Rule::Elsewhere),
            I::Restore { register } => {
                let mut initial = self.initial.ok_or(Broken)?;
                if let Some(rule) = initial.column(register) {
                    self.state.set(register, *rule);
                }
            }
            I::RememberState => {
                if self.remembered.len() == MAX_REMEMBERED {
                    return Err(Broken);
                }
                self.remembered.push(self.state);
            }
            I::RestoreState => self.state = self.remembered.pop().ok_or(Broken)?,
            // The argument size serves exception landing pads; `Nop` pads; the last is ARM's.
            I::ArgsSize { .. } | I::Nop => {}
            I::NegateRaState => return Err(Broken),
        }
        Ok(Flow::Stay)
    }

    fn set_cfa_offset(&mut self, new: i64) -> Result<(), Broken> {
        match &mut self.state.cfa {
            Cfa::Register { offset, .. } => *offset = new,
            Cfa::Expression(_) => return Err(Broken),
        }
        Ok(())
    }
}
