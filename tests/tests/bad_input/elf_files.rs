//! Targets whose unwind or debug information is broken.

use super::*;

/// The rows of a table that need only the innermost frame.
fn functions_only(mut table: Table) -> Table {
    table.rows.retain(|row| matches!(row.subject, Subject::Function(_)));
    table
}

#[test]
fn broken_eh_frame_is_named_and_the_numbers_are_right() -> Result<()> {
    privileged!();
    let trace = trace_path("broken_eh_frame")?;
    let executable = trace.with_file_name("leak");
    let whole = program::LEAK.build(FramePointers::Omitted)?;
    copy_with_broken_sections(&whole, &executable, &[".eh_frame", ".eh_frame_hdr"])?;

    let finished = record_attached(&trace, &executable)?;

    require_words(&finished.stderr, &["eh_frame", "leak"])?;
    let report = report(&trace)?;
    ensure!(report.number("/capture/truncated_stacks")? > 0, "no stack is truncated");
    compare(&functions_only(program::LEAK.table()?), &report, Stacks::MayEndEarly)
}

#[test]
fn broken_eh_frame_does_not_matter_where_frame_pointers_are_kept() -> Result<()> {
    privileged!();
    let trace = trace_path("broken_eh_frame_kept")?;
    let executable = trace.with_file_name("leak");
    let whole = program::LEAK.build(FramePointers::Kept)?;
    copy_with_broken_sections(&whole, &executable, &[".eh_frame", ".eh_frame_hdr"])?;

    record_attached(&trace, &executable)?;

    // Up to `_start`, which has no frame pointer.
    compare(&program::LEAK.table()?, &report(&trace)?, Stacks::MayEndEarly)
}

#[test]
fn broken_dwarf_is_named_and_the_names_come_from_the_symbol_table() -> Result<()> {
    privileged!();
    let trace = trace_path("broken_dwarf")?;
    let executable = trace.with_file_name("leak");
    let whole = program::LEAK.build(FramePointers::Omitted)?;
    let sections = [".debug_info", ".debug_abbrev", ".debug_line", ".debug_aranges"];
    copy_with_broken_sections(&whole, &executable, &sections)?;

    record_launched(&trace, &[&executable])?;

    let finished = report_on(&trace)?;
    require_words(&finished.stderr, &["leak", "debug"])?;
    let report = memtrace_tests::report::Report::parse(&finished.stdout)?;
    compare(&program::LEAK.table()?, &report, Stacks::Complete)
}
