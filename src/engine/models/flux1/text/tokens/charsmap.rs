//! The rules for characters that sentencepiece compiles: a tree over bytes (a double array), and the texts that replace what is
//! found in it.
//!
//! The crate that applies them trusts them, and panics at a prompt where they lead out of their bounds. So every way through
//! them is tried first.

/// Numbers in a block of the tree: one for each byte that may follow.
const BLOCK: usize = 256;

/// Checks that no text leads out of the rules.
///
/// # Errors
/// When one does, or they are incomplete.
pub(super) fn check(charsmap: &[u8]) -> Result<(), String> {
    is_sound(charsmap).then_some(()).ok_or_else(|| "its rules for characters are damaged".to_owned())
}

fn is_sound(charsmap: &[u8]) -> bool {
    let Some((length, rest)) = charsmap.split_first_chunk::<4>() else { return false };
    let Some((tree, texts)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else { return false };
    let (units, remainder) = tree.as_chunks::<4>();
    let Ok(texts) = std::str::from_utf8(texts) else { return false };
    let units: Vec<Unit> = units.iter().map(|unit| Unit(u32::from_le_bytes(*unit))).collect();
    remainder.is_empty() && !units.is_empty() && is_closed(&units, texts)
}

/// A number of the tree.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    /// The byte that leads here; larger than any where none does.
    fn label(self) -> usize {
        (self.0 & ((1 << 31) | 0xFF)) as usize
    }

    /// How far away the block of what follows is.
    fn offset(self) -> usize {
        ((self.0 >> 10) as usize) << ((self.0 & (1 << 9)) >> 6)
    }

    /// Whether a rule ends here.
    fn has_value(self) -> bool {
        (self.0 >> 8) & 1 == 1
    }

    /// Where a rule's text begins.
    fn value(self) -> usize {
        (self.0 & !(1 << 31)) as usize
    }
}

/// Whether every way from the root stays inside the tree, and every rule has a text.
fn is_closed(units: &[Unit], texts: &str) -> bool {
    let mut is_visited = vec![false; units.len()];
    let mut open = vec![units[0].offset()];
    while let Some(node) = open.pop() {
        if (node | (BLOCK - 1)) >= units.len() {
            return false;
        }
        if std::mem::replace(&mut is_visited[node], true) {
            continue;
        }
        // Zero ends a text.
        for byte in 1..BLOCK {
            let place = node ^ byte;
            let unit = units[place];
            if unit.label() != byte {
                continue;
            }
            let next = place ^ unit.offset();
            if unit.has_value() && units.get(next).is_none_or(|unit| !texts.is_char_boundary(unit.value())) {
                return false;
            }
            open.push(next);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::normalizers::Precompiled;

    use super::*;

    /// The root's block, where the letter `a` leads, and the value behind it.
    const ROOT: u32 = 256 << 10;
    const LETTER: (usize, u32) = (0x100 ^ 0x61, 0x61 | (1 << 8) | ((0x100 ^ 0x61 ^ 0x101) << 10));
    const VALUE: (usize, u32) = (257, 1 << 31);

    /// Rules with one letter, of two blocks.
    fn made(root: u32, letter: u32, value: u32, texts: &str) -> Vec<u8> {
        let mut units = vec![0_u32; 2 * BLOCK];
        (units[0], units[LETTER.0], units[VALUE.0]) = (root, letter, value);
        let units: Vec<u8> = units.into_iter().flat_map(u32::to_le_bytes).collect();
        [&(units.len() as u32).to_le_bytes()[..], &units, texts.as_bytes()].concat()
    }

    fn sound() -> Vec<u8> {
        made(ROOT, LETTER.1, VALUE.1, "b\0\u{e9}\0")
    }

    #[test]
    fn sound_rules_are_applied() {
        check(&sound()).expect("sound");
        let rules = Precompiled::from(&sound()).expect("read");
        assert_eq!(rules.normalize_string("abcaä"), "bbcbä");
    }

    #[test]
    fn rules_that_lead_out_of_their_bounds_are_refused() {
        for (rules, what) in [
            (made(512 << 10, LETTER.1, VALUE.1, "b\0"), "the root"),
            (made(ROOT, LETTER.1 ^ (512 << 10), VALUE.1, "b\0"), "the letter"),
            (made(ROOT, LETTER.1, 3, "b\0"), "behind the texts"),
            (made(ROOT, LETTER.1, 3, "b\0\u{e9}\0"), "inside a character"),
            (sound()[..3].to_vec(), "no length"),
            (sound()[..2000].to_vec(), "an incomplete tree"),
            (vec![0; 4], "no tree"),
            ([sound(), vec![0xff]].concat(), "no text"),
        ] {
            assert!(check(&rules).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn accepted_rules_panic_at_no_text(root: u32, letter: u32, value: u32, low in 0_u32..1024, text in ".*") {
            let near = |unit: u32, known: u32| if unit & 1 == 0 { known ^ low } else { unit };
            let rules = made(near(root, ROOT), near(letter, LETTER.1), near(value, VALUE.1), "b\0\u{e9}\0");
            if check(&rules).is_ok() {
                let rules = Precompiled::from(&rules).expect("read");
                rules.normalize_string(&format!("a aa {text}a\u{301}"));
            }
        }
    }
}
