//! The shared tables of a Firefox profile: strings, files, functions, frames and the tree.

use serde::Serialize;

use super::super::list::List;
use super::super::weights::{Call, Paths};
use crate::pipeline::snapshot::Snapshot;
use crate::record::Image;
use crate::views::frames::{base_name, module_name};

use rustc_hash::FxHashMap;

/// A resource that is a library, in the format's numbering.
const LIBRARY: u32 = 1;
/// The category of code, in the list of categories.
const CODE: u32 = 1;

/// An ELF file.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lib {
    arch: &'static str,
    name: String,
    path: String,
    debug_name: String,
    debug_path: String,
    breakpad_id: String,
    code_id: Option<String>,
}

/// What samples refer to, except the tree.
pub(super) struct Tables {
    pub(super) libs: Vec<Lib>,
    strings: Vec<String>,
    string_ids: FxHashMap<String, usize>,
    /// Names of source files, as strings.
    sources: Vec<usize>,
    /// Library and name of each module.
    resources: Vec<(Option<usize>, usize)>,
    functions: Vec<Function>,
    /// The function of each frame; frames are the labels of the paths.
    frame_functions: Vec<usize>,
}

/// Name, module and source file, as indices.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Function {
    name: usize,
    resource: Option<usize>,
    source: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shared<'t, S, F, U, R> {
    string_array: &'t [String],
    stack_table: S,
    frame_table: F,
    func_table: U,
    resource_table: R,
    sources: Sources<'t>,
    native_symbols: NativeSymbols,
}

#[derive(Serialize)]
struct StackTable<F, P> {
    length: usize,
    frame: F,
    prefix: P,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FrameTable<I, L> {
    length: usize,
    address: Vec<i32>,
    inline_depth: I,
    category: Vec<u32>,
    subcategory: Vec<u32>,
    func: Vec<usize>,
    native_symbol: Vec<()>,
    #[serde(rename = "innerWindowID")]
    inner_window_id: Vec<()>,
    line: L,
    column: Vec<()>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FuncTable {
    length: usize,
    name: Vec<usize>,
    #[serde(rename = "isJS")]
    is_js: Vec<bool>,
    #[serde(rename = "relevantForJS")]
    relevant_for_js: Vec<bool>,
    resource: Vec<i64>,
    source: Vec<Option<usize>>,
    line_number: Vec<()>,
    column_number: Vec<()>,
}

#[derive(Serialize)]
struct ResourceTable {
    length: usize,
    lib: Vec<Option<usize>>,
    name: Vec<usize>,
    host: Vec<()>,
    r#type: Vec<u32>,
}

#[derive(Serialize)]
struct Sources<'t> {
    length: usize,
    uuid: Vec<()>,
    filename: &'t [usize],
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct NativeSymbols {
    length: usize,
    lib_index: [(); 0],
    address: [(); 0],
    name: [(); 0],
    function_size: [(); 0],
}

impl Tables {
    pub(super) fn new(snapshot: &Snapshot, paths: &Paths<Call>) -> Tables {
        let mut tables = Tables {
            libs: Vec::new(),
            strings: Vec::new(),
            string_ids: FxHashMap::default(),
            sources: Vec::new(),
            resources: Vec::new(),
            functions: Vec::new(),
            frame_functions: Vec::new(),
        };
        let mut libs = FxHashMap::default();
        for image in &snapshot.images {
            if let Image::File { path: _, build_id } = &**image {
                let path = module_name(image);
                libs.entry(path.to_string()).or_insert(tables.libs.len());
                tables.libs.push(lib(&path, build_id));
            }
        }
        let mut resources: FxHashMap<&str, usize> = FxHashMap::default();
        let mut sources: FxHashMap<&str, usize> = FxHashMap::default();
        let mut functions: FxHashMap<Function, usize> = FxHashMap::default();
        for Call { name, module, file, line: _, inlined: _ } in &paths.labels {
            let name = tables.string(name);
            let resource = module.as_deref().map(|module| {
                *resources.entry(module).or_insert_with(|| {
                    let name = tables.string(base_name(module));
                    tables.resources.push((libs.get(module).copied(), name));
                    tables.resources.len() - 1
                })
            });
            let source = file.as_deref().map(|file| {
                *sources.entry(file).or_insert_with(|| {
                    let name = tables.string(file);
                    tables.sources.push(name);
                    tables.sources.len() - 1
                })
            });
            let function = Function { name, resource, source };
            let id = *functions.entry(function).or_insert_with(|| {
                tables.functions.push(function);
                tables.functions.len() - 1
            });
            tables.frame_functions.push(id);
        }
        tables
    }

    pub(super) fn string(&mut self, text: &str) -> usize {
        if let Some(&known) = self.string_ids.get(text) {
            return known;
        }
        self.string_ids.insert(text.to_owned(), self.strings.len());
        self.strings.push(text.to_owned());
        self.strings.len() - 1
    }

    /// All tables; the tree is made while it is written.
    pub(super) fn shared<'t>(&'t self, paths: &'t Paths<Call>) -> impl Serialize + 't {
        let count = nodes(paths).map(|path| path.new.len()).sum();
        let frames = paths.labels.len();
        let functions = &self.functions;
        Shared {
            string_array: &self.strings,
            stack_table: StackTable {
                length: count,
                frame: List(|| nodes(paths).flat_map(|path| path.new.iter().copied())),
                prefix: List(|| nodes(paths).flat_map(prefixes)),
            },
            frame_table: FrameTable {
                length: frames,
                // Names are there, so nobody has to look an address up.
                address: vec![-1; frames],
                // How deep is not known: two frames of one line are one here.
                inline_depth: List(|| paths.labels.iter().map(|call| u32::from(call.inlined))),
                category: vec![CODE; frames],
                subcategory: vec![0; frames],
                func: self.frame_functions.clone(),
                native_symbol: vec![(); frames],
                inner_window_id: vec![(); frames],
                line: List(|| paths.labels.iter().map(|call| call.line)),
                column: vec![(); frames],
            },
            func_table: FuncTable {
                length: functions.len(),
                name: functions.iter().map(|function| function.name).collect(),
                is_js: vec![false; functions.len()],
                relevant_for_js: vec![false; functions.len()],
                resource: functions
                    .iter()
                    .map(|function| function.resource.map_or(-1, |resource| resource as i64))
                    .collect(),
                source: functions.iter().map(|function| function.source).collect(),
                line_number: vec![(); functions.len()],
                column_number: vec![(); functions.len()],
            },
            resource_table: ResourceTable {
                length: self.resources.len(),
                lib: self.resources.iter().map(|resource| resource.0).collect(),
                name: self.resources.iter().map(|resource| resource.1).collect(),
                host: vec![(); self.resources.len()],
                r#type: vec![LIBRARY; self.resources.len()],
            },
            sources: Sources {
                length: self.sources.len(),
                uuid: vec![(); self.sources.len()],
                filename: &self.sources,
            },
            native_symbols: NativeSymbols::default(),
        }
    }
}

/// The nodes that a path adds to the tree.
pub(super) struct NewNodes<'p> {
    /// The frames of the new nodes.
    new: &'p [u32],
    /// The number of the first new node.
    first: usize,
    /// The node that they hang at.
    parent: Option<usize>,
    /// The node of the whole path.
    pub(super) last: usize,
}

/// The tree, path by path.
pub(super) fn nodes(paths: &Paths<Call>) -> impl Iterator<Item = NewNodes<'_>> {
    let mut open: Vec<usize> = Vec::new();
    let mut next = 0;
    paths.walk().map(move |step| {
        let (first, parent) = (next, step.shared.checked_sub(1).map(|last| open[last]));
        open.truncate(step.shared);
        let new = &step.nodes[step.shared..];
        open.extend(first..first + new.len());
        next += new.len();
        NewNodes { new, first, parent, last: open.last().copied().unwrap_or_default() }
    })
}

fn prefixes(path: NewNodes<'_>) -> impl Iterator<Item = Option<usize>> {
    let NewNodes { new, first, parent, last: _ } = path;
    (0..new.len()).map(move |index| if index == 0 { parent } else { Some(first + index - 1) })
}

/// The process that the profile is named after.
pub(super) fn process(snapshot: &Snapshot) -> u32 {
    snapshot.session.as_ref().map_or(0, |session| session.pid.0)
}

fn lib(path: &str, build_id: &[u8]) -> Lib {
    let code_id: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    Lib {
        arch: "x86_64",
        name: base_name(path).to_owned(),
        path: path.to_owned(),
        debug_name: base_name(path).to_owned(),
        debug_path: path.to_owned(),
        breakpad_id: breakpad_id(build_id),
        code_id: (!code_id.is_empty()).then_some(code_id),
    }
}

/// A build id as symbol servers call it: a little-endian GUID of its first 16 bytes, and age 0.
fn breakpad_id(build_id: &[u8]) -> String {
    let mut guid = [0; 16];
    for (to, from) in guid.iter_mut().zip(build_id) {
        *to = *from;
    }
    guid[0..4].reverse();
    guid[4..6].reverse();
    guid[6..8].reverse();
    guid.iter().map(|byte| format!("{byte:02X}")).chain(["0".to_owned()]).collect()
}
