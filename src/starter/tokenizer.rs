//! The starter model's own tokenizer: one token for each number up to 99, one for nearly each word of its two tasks,
//! bytes for everything else.
//!
//! Text is read in one canonical form: lower case, split into words, digit runs and signs, each with one space before
//! it. So "Tom has 3 apples." and "tom has 3 apples ." are the same tokens, a number is the same token wherever it
//! stands, and texts encoded apart and joined equal the text encoded whole. Decoding gives the canonical form, without
//! its first space. The committed `tokenizer.json` is what the weights were trained with; [`build`] is how it came about.

use crate::starter::words;
use crate::text::{TextError, Tokenizer};
use tokenizers::{
    AddedToken, SplitDelimiterBehavior,
    decoders::{DecoderWrapper, sequence::Sequence as DecoderSequence, strip::Strip},
    models::bpe::{BPE, Vocab},
    normalizers::{NormalizerWrapper, Sequence as NormalizerSequence, replace::Replace, utils::Lowercase},
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizerSequence,
        split::{Split, SplitPattern},
    },
};

/// The committed tokenizer, as written by [`build`].
pub const JSON: &[u8] = include_bytes!("tokenizer.json");

/// Number of text tokens; image codes follow from this id on.
pub const VOCAB_SIZE: usize = 512;

/// Fills a batch's unused places; never predicted.
pub const PAD: u32 = 0;
/// Ends every answer and caption.
pub const EOS: u32 = 1;
/// Stands at masked positions; never sampled.
pub const MASK: u32 = 2;
/// Begins a text task: `<|lm|> question answer <eos>`.
pub const LM: u32 = 3;
/// Begins text to image: `<|t2i|> caption <|soi|> codes <|eoi|>`.
pub const T2I: u32 = 4;
/// Begins image to text: `<|mmu|> <|soi|> codes <|eoi|> caption <eos>`.
pub const MMU: u32 = 5;
/// Before the image codes.
pub const SOI: u32 = 6;
/// After the image codes.
pub const EOI: u32 = 7;

/// The special tokens in the order of their ids.
pub const SPECIAL: [&str; 8] = ["<pad>", "<eos>", "<mask>", "<|lm|>", "<|t2i|>", "<|mmu|>", "<|soi|>", "<|eoi|>"];

/// Numbers with a token of their own: 0 to 99.
const NUMBERS: u32 = 100;

/// The words of the scene captions (`starter::scenes::caption`), and more that people say of places. A list of its own, so
/// that a new caption word fails a test instead of moving every id under the trained weights.
const CAPTION_WORDS: &str = "a above an and below blue bottom center circle circles corner cross crosses draw four green in large \
    left lower medium middle of on one orange over picture purple red right side small square squares \
    the three to top triangle triangles two under upper yellow";

/// A word, a clitic as in "what's", a run of digits, a run of `#`, one sign, or a run of anything else but space.
const PIECES: &str = r"[\p{L}\p{M}]+|['’]\p{L}+|[0-9]+|#+|[.,;:?!=+*/()-]|[^\s\p{L}\p{M}0-9#.,;:?!=+*/()-]+";

/// The byte-level alphabet's stand-in for a space, which begins every piece.
const SPACE: char = 'Ġ';

/// The committed tokenizer, ready for use.
///
/// # Errors
/// [`TextError::Load`] when the embedded file is damaged.
pub fn load() -> Result<Tokenizer, TextError> {
    Tokenizer::from_bytes(JSON)
}

/// The token of the number `n`, the same wherever it is written; `None` above 99.
#[must_use]
pub fn number_token(tokenizer: &Tokenizer, n: u32) -> Option<u32> {
    (n < NUMBERS).then(|| tokenizer.token_id(&format!("{SPACE}{n}")))?
}

/// Assembles the tokenizer and returns its `tokenizer.json`; the same bytes on every machine.
///
/// # Errors
/// [`TextError::Build`] when the words exceed the budget or the library refuses a part.
pub fn build() -> Result<Vec<u8>, TextError> {
    let failed = |e: tokenizers::Error| TextError::Build(e.to_string());
    let (vocabulary, specials) = vocabulary()?;
    let bpe = BPE::builder().vocab_and_merges(vocabulary, number_merges());
    // A piece that is in the vocabulary is one token, whatever the merges say; only digits need merges.
    let model = bpe.ignore_merges(true).build().map_err(failed)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(normalizer().map_err(failed)?))
        .map_err(failed)?
        .with_pre_tokenizer(Some(pre_tokenizer().map_err(failed)?))
        .with_decoder(Some(DecoderSequence::new(vec![
            DecoderWrapper::ByteLevel(ByteLevel::default()),
            DecoderWrapper::Strip(Strip::new(' ', 1, 0)),
        ])));
    tokenizer.add_special_tokens(specials.into_iter().map(|token| AddedToken::from(token, true))).map_err(failed)?;
    let mut json = tokenizer.to_string(true).map_err(failed)?;
    json.push('\n');
    Ok(json.into_bytes())
}

/// The vocabulary and which of it is special: special tokens, numbers, bytes, words, then reserved special tokens up
/// to [`VOCAB_SIZE`], so that a later task needs no larger one.
fn vocabulary() -> Result<(Vocab, Vec<String>), TextError> {
    let mut words: Vec<&str> = words::lexicon();
    words.extend(CAPTION_WORDS.split(' '));
    words.sort_unstable();
    words.dedup();
    let mut tokens = SPECIAL.map(str::to_owned).to_vec();
    tokens.extend((0..NUMBERS).map(|n| format!("{SPACE}{n}")));
    tokens.extend(alphabet().into_iter().map(String::from));
    tokens.extend(words.iter().map(|word| format!("{SPACE}{word}")));
    if tokens.len() > VOCAB_SIZE {
        let message = format!("{} tokens exceed the vocabulary of {VOCAB_SIZE}; drop words", tokens.len());
        return Err(TextError::Build(message));
    }
    let reserved: Vec<String> = (tokens.len()..VOCAB_SIZE).map(|id| format!("<|reserved_{id}|>")).collect();
    let specials = SPECIAL.iter().map(|&s| s.to_owned()).chain(reserved.iter().cloned()).collect();
    Ok((tokens.into_iter().chain(reserved).zip(0..).collect(), specials))
}

/// The stand-ins of all bytes that canonical text can contain: no ASCII capitals or white space but the space, none
/// that UTF-8 never uses (0xC0, 0xC1, 0xF5 and above).
fn alphabet() -> Vec<char> {
    let absent = |c: &char| matches!(c, 'A'..='Z' | '\u{C0}' | '\u{C1}' | '\u{F5}'..='\u{FF}' | '\u{109}'..='\u{10D}');
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().filter(|c| !absent(c)).collect();
    alphabet.sort_unstable();
    alphabet
}

/// What makes 12 out of a space, 1 and 2. Three digits are two pieces, `12` and `3`; `05` is `0` and `5`.
fn number_merges() -> Vec<(String, String)> {
    let digits = || ('0'..='9').map(String::from);
    let ones = digits().map(|d| (SPACE.to_string(), d));
    let tens = digits().skip(1).flat_map(|t| digits().map(move |d| (format!("{SPACE}{t}"), d)));
    ones.chain(tens).collect()
}

fn normalizer() -> tokenizers::Result<NormalizerSequence> {
    Ok(NormalizerSequence::new(vec![
        NormalizerWrapper::Lowercase(Lowercase),
        // The signs that people type or paste for the ones of the drills.
        NormalizerWrapper::Replace(Replace::new("×", "*")?),
        NormalizerWrapper::Replace(Replace::new("−", "-")?),
    ]))
}

fn pre_tokenizer() -> tokenizers::Result<PreTokenizerSequence> {
    let pieces = SplitPattern::Regex(PIECES.to_owned());
    Ok(PreTokenizerSequence::new(vec![
        PreTokenizerWrapper::Split(Split::new(pieces, SplitDelimiterBehavior::Removed, true)?),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(true, false, false)),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::rng::Stream;
    use crate::starter::words::{Kind, MAX_ANSWER_TOKENS, MAX_QUESTION_TOKENS, Split as Set, sample};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// The canonical form, written independently of the tokenizer's pattern.
    fn canonical(text: &str) -> String {
        #[derive(PartialEq, Clone, Copy)]
        enum Class {
            Space,
            Word,
            Digit,
            Hash,
            Sign,
            Other,
        }
        let class = |c: char| match c {
            c if c.is_whitespace() => Class::Space,
            c if c.is_ascii_digit() => Class::Digit,
            c if c.is_ascii_alphabetic() => Class::Word,
            '#' => Class::Hash,
            c if ".,;:?!=+*/()-".contains(c) => Class::Sign,
            _ => Class::Other,
        };
        let (mut out, mut last) = (String::new(), Class::Space);
        for c in text.to_lowercase().replace('×', "*").replace('−', "-").chars() {
            let now = class(c);
            if now != Class::Space && (now != last || now == Class::Sign) && !out.is_empty() {
                out.push(' ');
            }
            if now != Class::Space {
                out.push(c);
            }
            last = now;
        }
        out
    }

    #[test]
    fn the_committed_file_is_what_build_gives() {
        assert!(build().unwrap() == JSON, "src/starter/tokenizer.json differs from what `build` assembles");
    }

    #[test]
    fn ids_are_the_documented_ones() {
        let tokenizer = load().unwrap();
        assert_eq!(tokenizer.vocab_size(), VOCAB_SIZE);
        let ids = [PAD, EOS, MASK, LM, T2I, MMU, SOI, EOI];
        for (name, id) in SPECIAL.into_iter().zip(ids) {
            assert_eq!(tokenizer.token_id(name), Some(id));
            assert!(tokenizer.is_special(id));
        }
        assert_eq!(tokenizer.decode(&[LM, number_token(&tokenizer, 7).unwrap(), EOS, 600]), "7");
    }

    #[test]
    fn a_number_is_one_token_wherever_it_stands() {
        let tokenizer = load().unwrap();
        for n in 0..NUMBERS {
            let id = number_token(&tokenizer, n).unwrap();
            for (text, at, len) in [("{}", 0, 1), ("  {} ", 0, 1), ("3+{}=", 2, 4), ("has {}.", 1, 3), ("####{}", 1, 2)]
            {
                let ids = tokenizer.encode(&text.replace("{}", &n.to_string())).unwrap();
                assert_eq!((ids.get(at), ids.len()), (Some(&id), len), "{text} {n}");
            }
        }
        assert_eq!(number_token(&tokenizer, 100), None);
        for (text, pieces) in [("123", 2), ("1234", 3), ("05", 2), ("100", 2)] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!((ids.len(), tokenizer.decode(&ids)), (pieces, text.to_owned()));
        }
    }

    #[test]
    fn problems_are_one_token_a_word_and_short() {
        let tokenizer = load().unwrap();
        for set in Set::ALL {
            for kind in Kind::ALL {
                for i in 0..2_000 {
                    let problem = sample(&mut Stream::new(5, i), kind, set);
                    for (text, limit) in
                        [(&problem.question, MAX_QUESTION_TOKENS), (&problem.answer_text, MAX_ANSWER_TOKENS)]
                    {
                        let ids = tokenizer.encode(text).unwrap();
                        assert_eq!(ids.len(), text.split(' ').count(), "{text}");
                        assert!(ids.len() <= limit, "{text}");
                        assert_eq!(&tokenizer.decode(&ids), text);
                    }
                }
            }
        }
    }

    #[test]
    fn caption_words_are_one_token_each() {
        let tokenizer = load().unwrap();
        for word in CAPTION_WORDS.split(' ').chain(crate::starter::scenes::caption::words()) {
            assert_eq!(tokenizer.encode(word).unwrap().len(), 1, "{word}");
        }
    }

    #[test]
    fn natural_writing_is_read_as_the_canonical_form() {
        let tokenizer = load().unwrap();
        let natural = tokenizer.encode("Tom has 3 apples. He buys 4 more.\nHow many apples does he have now?").unwrap();
        let written =
            tokenizer.encode("tom has 3 apples . he buys 4 more . how many apples does he have now ?").unwrap();
        assert_eq!(natural, written);
        assert_eq!(tokenizer.encode("3×4−2=").unwrap(), tokenizer.encode("3 * 4 - 2 =").unwrap());
    }

    static STARTER: LazyLock<Tokenizer> = LazyLock::new(|| load().unwrap());

    proptest! {
        #[test]
        fn any_text_is_represented(text in any::<String>()) {
            let ids = STARTER.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|&id| (id as usize) < VOCAB_SIZE && !STARTER.is_special(id)));
            let letters = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            // Character by character: a final sigma is not told apart.
            let lower: String = text.chars().flat_map(char::to_lowercase).collect();
            let sent = lower.replace('×', "*").replace('−', "-");
            prop_assert_eq!(letters(&STARTER.decode(&ids)), letters(&sent));
            // The canonical form is a fixed point.
            prop_assert_eq!(STARTER.encode(&STARTER.decode(&ids)).unwrap(), ids);
        }

        #[test]
        fn decoding_gives_the_canonical_form(text in r"[ -~×−\n\t]{0,60}") {
            prop_assume!(!text.contains('\''));
            prop_assert_eq!(STARTER.decode(&STARTER.encode(&text).unwrap()), canonical(&text));
        }

        #[test]
        fn texts_encoded_apart_join(a in "[a-z0-9 .?]{0,20}", b in "[a-z0-9 .?]{0,20}") {
            let joined = [STARTER.encode(&a).unwrap(), STARTER.encode(&b).unwrap()].concat();
            prop_assert_eq!(joined, STARTER.encode(&format!("{a} {b}")).unwrap());
        }
    }
}
