//! The formats of a report, and which one a file name asks for.

use std::path::Path;

use clap::ValueEnum;

/// What a report is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// To read
    Text,
    /// To explore and to send: one page for a browser
    Html,
    /// For other programs; docs/report.schema.json describes it
    Json,
    /// A table of all stacks for spreadsheets
    Csv,
    /// Folded stacks: a line for each, and its weight
    Folded,
    /// A flame graph to open in a browser
    Svg,
    /// For `go tool pprof`, Pyroscope and others
    Pprof,
    /// For speedscope.app
    Speedscope,
    /// For profiler.firefox.com
    Firefox,
    /// For ui.perfetto.dev
    Perfetto,
    /// For Valgrind's dh_view.html
    Dhat,
    /// For heaptrack_print and heaptrack_gui
    Heaptrack,
    /// Every event, for DuckDB, DataFusion, pandas and Polars
    Parquet,
}

/// The endings of file names, longer ones first.
const ENDINGS: &[(&str, Format)] = &[
    (".speedscope.json", Format::Speedscope),
    (".firefox.json", Format::Firefox),
    (".dhat.json", Format::Dhat),
    (".heaptrack", Format::Heaptrack),
    (".heaptrack.gz", Format::Heaptrack),
    (".heaptrack.zst", Format::Heaptrack),
    (".html", Format::Html),
    (".parquet", Format::Parquet),
    (".perfetto-trace", Format::Perfetto),
    (".pftrace", Format::Perfetto),
    (".pb.gz", Format::Pprof),
    (".pprof", Format::Pprof),
    (".csv", Format::Csv),
    (".folded", Format::Folded),
    (".json", Format::Json),
    (".svg", Format::Svg),
    (".txt", Format::Text),
];

impl Format {
    /// The format that the name of the output asks for.
    pub(super) fn of_path(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)).map(|&(_, format)| format)
    }

    /// Its name on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it is a list of which the first entries can be asked for.
    pub(super) fn is_list(self) -> bool {
        matches!(self, Format::Text | Format::Json | Format::Csv)
    }

    /// Whether it shows one number of each stack.
    pub(super) fn is_weighed(self) -> bool {
        matches!(self, Format::Folded | Format::Svg | Format::Speedscope | Format::Firefox)
    }

    /// Whether it shows every event, and so no part of a session.
    pub(super) fn is_made_of_events(self) -> bool {
        matches!(self, Format::Dhat | Format::Heaptrack | Format::Parquet)
    }

    /// Whether it can be about a part of a session. In a page the reader chooses one.
    pub(super) fn shows_a_part(self) -> bool {
        !self.is_made_of_events() && self != Format::Html
    }

    /// Whether it would make a mess of a terminal.
    pub(super) fn is_binary(self) -> bool {
        match self {
            Format::Pprof | Format::Perfetto | Format::Parquet => true,
            Format::Text
            | Format::Html
            | Format::Json
            | Format::Csv
            | Format::Folded
            | Format::Svg
            | Format::Speedscope
            | Format::Firefox
            | Format::Dhat
            | Format::Heaptrack => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_ending_of_the_name_chooses() {
        let format = |name| Format::of_path(Path::new(name));

        assert_eq!(format("x.json"), Some(Format::Json));
        assert_eq!(format("x.speedscope.json"), Some(Format::Speedscope));
        assert_eq!(format("/tmp/x.heaptrack.zst"), Some(Format::Heaptrack));
        assert_eq!(format("X.SVG"), Some(Format::Svg));
        assert_eq!(format("x.pb.gz"), Some(Format::Pprof));
        assert_eq!(format("x.gz"), None);
        assert_eq!(format("svg"), None);
    }

    #[test]
    fn every_format_has_an_ending() {
        for format in Format::value_variants() {
            assert!(ENDINGS.iter().any(|(_, of)| of == format), "{format:?}");
        }
    }
}
