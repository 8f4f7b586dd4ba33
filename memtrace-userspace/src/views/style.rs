//! Colour, or none.

/// How text is set off on the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As plain characters.
    Plain,
    /// With ANSI escapes.
    Ansi,
}

impl Style {
    /// A heading.
    pub fn heading(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// Something that the reader must not overlook.
    pub fn warning(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// Something that got worse.
    pub fn worse(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// Something that got better.
    pub fn better(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Something that is there for completeness.
    pub fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Style::Plain => text.to_owned(),
            Style::Ansi => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_style_adds_nothing() {
        assert_eq!(Style::Plain.heading("Totals"), "Totals");
    }

    #[test]
    fn ansi_style_resets_what_it_sets() {
        assert_eq!(Style::Ansi.heading("Totals"), "\x1b[1mTotals\x1b[0m");
    }
}
