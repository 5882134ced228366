//! Patterns for names of modules, as PEFT has them in an adapter's metadata: regular expressions that are compared with the end
//! of a name, from a dot on. Names written as they are, and the few signs that trainers use, are understood; others are refused.

/// Longest pattern in characters. With the number of patterns it bounds the time that a file can take.
const CHARS_MAX: usize = 200;

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    items: Vec<(Letters, Times)>,
    /// Whether it is for the whole name.
    is_anchored: bool,
}

/// Which letters an item is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Letters {
    Any,
    Digits,
    One(char),
}

/// How often an item may occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    Once,
    AtMostOnce,
    AtLeastOnce,
    AnyNumber,
}

impl Letters {
    fn has(self, letter: char) -> bool {
        match self {
            Self::Any => true,
            Self::Digits => letter.is_ascii_digit(),
            Self::One(own) => own == letter,
        }
    }
}

impl Pattern {
    /// `None` for a text with other signs.
    pub(super) fn new(text: &str) -> Option<Self> {
        if text.chars().count() > CHARS_MAX {
            return None;
        }
        let (text, is_anchored) = text.strip_prefix('^').map_or((text, false), |rest| (rest, true));
        let text = text.strip_suffix('$').unwrap_or(text);
        let mut items: Vec<(Letters, Times)> = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            let times = match letter {
                '*' => Times::AnyNumber,
                '+' => Times::AtLeastOnce,
                '?' => Times::AtMostOnce,
                _ => Times::Once,
            };
            if times != Times::Once {
                let last = items.last_mut().filter(|(_, times)| *times == Times::Once)?;
                last.1 = times;
                continue;
            }
            let own = match letter {
                '.' => Letters::Any,
                '\\' => match letters.next()? {
                    'd' => Letters::Digits,
                    escaped if escaped.is_ascii_punctuation() => Letters::One(escaped),
                    _ => return None,
                },
                '(' | ')' | '[' | ']' | '{' | '}' | '|' | '^' | '$' => return None,
                plain => Letters::One(plain),
            };
            items.push((own, Times::Once));
        }
        Some(Self { items, is_anchored })
    }

    /// Whether it fits a name, or the end of one from a dot on.
    pub(super) fn fits(&self, name: &str) -> bool {
        let letters: Vec<char> = name.chars().collect();
        // Where in the name the items so far can end.
        let mut ends = vec![false; letters.len() + 1];
        ends[0] = true;
        for (place, _) in letters.iter().enumerate().filter(|(_, letter)| **letter == '.' && !self.is_anchored) {
            ends[place + 1] = true;
        }
        for (own, times) in &self.items {
            let mut next = match times {
                Times::Once | Times::AtLeastOnce => vec![false; ends.len()],
                Times::AtMostOnce | Times::AnyNumber => ends.clone(),
            };
            for (place, _) in letters.iter().enumerate().filter(|(_, letter)| own.has(**letter)) {
                let is_repeated = matches!(times, Times::AtLeastOnce | Times::AnyNumber) && next[place];
                if ends[place] || is_repeated {
                    next[place + 1] = true;
                }
            }
            ends = next;
        }
        ends[letters.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compared with Python's `re.match(rf"(.*\.)?({pattern})$", name)`.
    #[test]
    fn patterns_fit_as_in_peft() {
        let name = "single_transformer_blocks.10.attn.to_q";
        for (pattern, fits) in [
            ("to_q", true),
            ("o_q", false),
            ("attn.to_q", true),
            ("attn.to_k", false),
            ("transformer_blocks.10.attn.to_q", false),
            ("single_transformer_blocks.10.attn.to_q", true),
            ("^single_transformer_blocks.10.attn.to_q", true),
            ("^single_transformer_blocks.1.attn.to_q$", false),
            ("^attn.to_q", false),
            (r"single_transformer_blocks\.10\.attn\.to_q", true),
            (r"single_transformer_blocks\.\d+\.attn\.to_q", true),
            (r"single_transformer_blocks\.\d\.attn\.to_q", false),
            (".*to_q", true),
            ("attn.*", true),
            ("attn", false),
            (".*attn.*q", true),
            ("to_qq?", true),
            ("to_qq+", false),
            ("to_qq*", true),
            ("", false),
        ] {
            let pattern = Pattern::new(pattern).unwrap_or_else(|| panic!("{pattern}"));
            assert_eq!(pattern.fits(name), fits, "{pattern:?}");
        }
    }

    #[test]
    fn other_signs_are_refused() {
        for pattern in ["(to_q|to_k)", "[0-9]", "a{2}", "*a", "a**", r"\w", "a|b", "\\"] {
            assert_eq!(Pattern::new(pattern), None, "{pattern}");
        }
        assert_eq!(Pattern::new(&"a".repeat(CHARS_MAX + 1)), None);
    }
}
