//! What keys do.

use std::collections::BTreeMap;

use super::*;
use crate::views::fixture;
use crate::views::ranking::{rank, rank_processes};

fn ranked() -> Ranked {
    let snapshot = fixture::snapshot();
    let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
    Ranked { snapshot: Arc::new(snapshot), ranking, processes: BTreeMap::new() }
}

fn press(app: &mut App, code: KeyCode) -> Next {
    app.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn first_row(app: &App) -> Option<String> {
    app.rows().first().and_then(|row| row.function.name.as_deref().map(str::to_owned))
}

fn filled() -> App {
    let mut app = App::new(SortKey::Live);
    app.update(ranked());
    app
}

#[test]
fn sort_key_reorders_the_rows() {
    let mut app = filled();
    assert_eq!(first_row(&app).as_deref(), Some("leak_per_request"));

    press(&mut app, KeyCode::Char('2'));

    assert_eq!(first_row(&app).as_deref(), Some("cache::Entry::build"));
}

#[test]
fn sort_key_steps_through_all() {
    let mut app = filled();
    let mut seen = Vec::new();

    for _ in SortKey::ALL {
        seen.push(app.sort());
        press(&mut app, KeyCode::Char('s'));
    }

    assert_eq!(seen, SortKey::ALL);
    assert_eq!(app.sort(), SortKey::Live);
}

#[test]
fn paused_view_keeps_its_numbers_until_it_is_resumed() {
    let mut app = filled();
    press(&mut app, KeyCode::Char('p'));
    let mut newer = ranked();
    Arc::make_mut(&mut newer.snapshot).events = 99;

    app.update(newer);
    assert_ne!(app.shown().map(|r| r.snapshot.events), Some(99));
    press(&mut app, KeyCode::Char('p'));

    assert_eq!(app.shown().map(|r| r.snapshot.events), Some(99));
}

#[test]
fn selection_stays_with_its_function_when_rows_move() {
    let mut app = filled();
    press(&mut app, KeyCode::Down);
    let selected = app.rows()[app.selected_row()].function.name.clone();

    press(&mut app, KeyCode::Char('2'));

    assert_eq!(app.rows()[app.selected_row()].function.name, selected);
    assert_eq!(app.selected_row(), 0);
}

#[test]
fn selection_stops_at_the_last_row() {
    let mut app = filled();

    press(&mut app, KeyCode::End);
    press(&mut app, KeyCode::Down);

    assert_eq!(app.selected_row(), app.rows().len() - 1);
}

#[test]
fn enter_shows_the_stacks_and_escape_goes_back() {
    let mut app = filled();

    press(&mut app, KeyCode::Enter);
    let View::Stacks { function, .. } = app.view() else { panic!("{:?}", app.view()) };
    assert_eq!(app.stacks_of(function).len(), 1);

    assert_eq!(press(&mut app, KeyCode::Esc), Next::Redraw);
    assert_eq!(press(&mut app, KeyCode::Esc), Next::Leave);
}

/// Two processes; all that allocates most is the child's, and the rest its parent's.
fn family() -> (App, [Pid; 2]) {
    let mut snapshot = fixture::snapshot();
    let parent = snapshot.processes[0].pid;
    let mut child = snapshot.processes[0].clone();
    child.pid = Pid(parent.0 + 1);
    child.heap.live_bytes = 1;
    let pids = [parent, child.pid];
    snapshot.processes.push(child);
    let (of_child, of_parent) = snapshot.stacks.split_at(1);
    snapshot.process_stacks =
        BTreeMap::from([(pids[0], of_parent.to_vec()), (pids[1], of_child.to_vec())]);
    let mut names = fixture::names();
    let ranking = rank(&snapshot, &mut names, SortKey::Live);
    let processes = rank_processes(&snapshot, &mut names, SortKey::Live);
    let mut app = App::new(SortKey::Live);
    app.update(Ranked { snapshot: Arc::new(snapshot), ranking, processes });
    (app, pids)
}

fn names_of_rows(app: &App) -> Vec<String> {
    app.rows().iter().map(|row| row.function.name.as_deref().unwrap_or("??").to_owned()).collect()
}

#[test]
fn tab_goes_to_the_processes_and_on_through_their_threads() {
    let (mut app, [first, child]) = family();

    press(&mut app, KeyCode::Tab);
    press(&mut app, KeyCode::End);
    assert_eq!(app.view(), View::Processes { selected: 1 });

    press(&mut app, KeyCode::Char('t'));
    assert_eq!(app.view(), View::Threads { pid: child, selected: 0 });

    press(&mut app, KeyCode::Tab);
    assert_eq!(app.view(), View::Threads { pid: first, selected: 0 });

    press(&mut app, KeyCode::Esc);
    assert_eq!(app.view(), View::Processes { selected: 0 });
    press(&mut app, KeyCode::Tab);
    assert_eq!(app.view(), View::Functions);
}

#[test]
fn enter_lists_the_functions_of_a_process_and_tab_those_of_the_next() {
    let (mut app, [first, child]) = family();
    let of_all = names_of_rows(&app);

    press(&mut app, KeyCode::Tab);
    press(&mut app, KeyCode::End);
    press(&mut app, KeyCode::Enter);
    assert_eq!(app.process().map(|process| process.pid), Some(child));
    assert_eq!(names_of_rows(&app), ["leak_per_request"]);

    press(&mut app, KeyCode::Tab);
    assert_eq!(app.process().map(|process| process.pid), Some(first));
    assert_eq!(names_of_rows(&app), ["cache::Entry::build", "??", "parse"]);

    press(&mut app, KeyCode::Char('4'));
    assert_eq!(names_of_rows(&app), ["parse", "cache::Entry::build", "??"]);

    press(&mut app, KeyCode::Char('t'));
    assert_eq!(app.view(), View::Threads { pid: first, selected: 0 });
    press(&mut app, KeyCode::Esc);
    assert!(matches!(app.view(), View::Processes { .. }), "{:?}", app.view());
    press(&mut app, KeyCode::Tab);
    press(&mut app, KeyCode::Char('1'));
    assert_eq!(names_of_rows(&app), of_all);
}

#[test]
fn stacks_are_those_of_the_process() {
    let (mut app, [first, _]) = family();

    press(&mut app, KeyCode::Tab);
    press(&mut app, KeyCode::Enter);
    press(&mut app, KeyCode::Enter);
    let View::Stacks { function, .. } = app.view() else { panic!("{:?}", app.view()) };
    assert_eq!(app.stacks_of(function).len(), 1);

    press(&mut app, KeyCode::Esc);
    assert_eq!(app.view(), View::Functions);
    assert_eq!(app.process().map(|process| process.pid), Some(first));
    assert_eq!(press(&mut app, KeyCode::Esc), Next::Redraw);
    assert_eq!(app.view(), View::Processes { selected: 0 });
}

#[test]
fn keys_before_the_first_snapshot_do_no_harm() {
    let mut app = App::new(SortKey::Live);

    for code in [KeyCode::Enter, KeyCode::Down, KeyCode::End, KeyCode::Char('s')]
        .into_iter()
        .chain([KeyCode::Tab, KeyCode::Enter, KeyCode::Char('t'), KeyCode::Down, KeyCode::Tab])
    {
        press(&mut app, code);
    }

    assert_eq!(app.view(), View::Functions);
    assert_eq!(press(&mut app, KeyCode::Char('q')), Next::Leave);
}

#[test]
fn control_c_leaves() {
    let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);

    assert_eq!(filled().key(key), Next::Leave);
}
