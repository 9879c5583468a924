//! What was meant by a word that there is not.

/// The words that are most like this one, if any is: several where they are so alike.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let word = word.to_lowercase().replace('_', "-");
    // Letters that have changed places are one mistake, as are one too many, one too few and another one.
    let distance = |known: &str| strsim::damerau_levenshtein(&word, known);
    let known: Vec<_> = known.into_iter().map(|known| (distance(known), known)).collect();
    let Some(least) = known.iter().map(|(distance, _)| *distance).min() else { return Vec::new() };
    if least > (word.chars().count() / 3).max(1) {
        return Vec::new();
    }
    known.into_iter().filter(|(distance, _)| *distance == least).map(|(_, known)| known).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use nbd_testkit::{Random, cases};

    use super::*;

    /// The word with one mistake in it.
    pub(crate) fn misspelt(random: &mut Random, word: &str) -> String {
        let mut letters: Vec<char> = word.chars().collect();
        let index = |random: &mut Random, length: usize| {
            usize::try_from(random.below(length as u64)).expect("it is one")
        };
        let letter = random.of(&['a', 'e', 'i', 'o', 'r', 's', 't', 'x', '-']);
        match random.below(4) {
            0 => {
                let at = index(random, letters.len() + 1);
                letters.insert(at, letter);
            }
            1 if letters.len() > 1 => {
                let at = index(random, letters.len());
                letters.remove(at);
            }
            2 if letters.len() > 1 => {
                let at = index(random, letters.len() - 1);
                letters.swap(at, at + 1);
            }
            _ => {
                let at = index(random, letters.len());
                letters[at] = letter;
            }
        }
        letters.into_iter().collect()
    }

    #[test]
    fn a_word_with_one_mistake_is_recognized() {
        let known = ["map", "compare", "copy", "a", "list", "dump", "read-only"];
        cases(2000, |random| {
            let meant = random.of(&known);
            let word = misspelt(random, meant);
            if known.contains(&word.as_str()) {
                return;
            }
            let nearest = nearest(&word, known);
            assert!(nearest.contains(&meant), "{word} for {meant}: {nearest:?}");
        });
        assert_eq!(nearest("mpa", known), ["map"]);
        assert_eq!(nearest("Read_Only", known), ["read-only"]);
        assert_eq!(nearest("frobnicate", known), [""; 0]);
        assert_eq!(nearest("", []), [""; 0]);
    }
}
