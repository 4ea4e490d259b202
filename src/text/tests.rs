use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;
use tokenizers::{
    AddedToken,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence},
    models::{bpe::BPE, wordlevel::WordLevel},
    pre_tokenizers::byte_level::ByteLevel,
};

const MASK: &str = "<|mdm_mask|>";

/// A byte-level tokenizer like those of the supported families: an id for every byte, a merge, special tokens.
fn byte_level() -> Tokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let tokens = alphabet.into_iter().map(String::from).chain(["he".to_owned()]);
    let bpe = BPE::builder().vocab_and_merges(
        tokens.zip(0..).collect::<tokenizers::models::bpe::Vocab>(),
        vec![("h".to_owned(), "e".to_owned())],
    );
    let mut inner = tokenizers::Tokenizer::new(bpe.build().unwrap());
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, false, true))).with_decoder(Some(ByteLevel::default()));
    inner.add_special_tokens(["<|endoftext|>", MASK].map(|t| AddedToken::from(t, true))).unwrap();
    inner.add_tokens([AddedToken::from("<tool>", false)]).unwrap();
    Tokenizer::from_bytes(inner.to_string(false).unwrap().as_bytes()).unwrap()
}

#[test]
fn a_special_token_in_user_text_is_text() {
    let tokenizer = byte_level();
    let mask = tokenizer.token_id(MASK).unwrap();
    for text in [MASK, "a<|mdm_mask|>b", "<|endoftext|><|mdm_mask|>", "  <|mdm_mask|>\n"] {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
    assert_eq!(tokenizer.decode(&[mask]), "");
    assert_eq!(tokenizer.encode("<tool>").unwrap().len(), 1, "added tokens that are not special stay whole");
}

#[test]
fn a_special_token_in_text_for_the_starter_is_text() {
    let tokenizer = crate::starter::tokenizer::load().unwrap();
    for text in crate::starter::tokenizer::SPECIAL.into_iter().chain(["<MASK>", "<|reserved_511|>"]) {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.len() > 1 && ids.iter().all(|&id| !tokenizer.is_special(id)), "{text:?}");
    }
}

#[test]
fn a_word_list_that_cannot_spell_a_special_token_refuses_it() {
    let vocab = [("<mask>", 0), ("hello", 1)].map(|(word, id)| (word.to_owned(), id));
    let model = WordLevel::builder().vocab(vocab.into_iter().collect()).unk_token("hello".into()).build().unwrap();
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.add_special_tokens([AddedToken::from("<mask>", true)]).unwrap();
    let tokenizer = Tokenizer::from_bytes(inner.to_string(false).unwrap().as_bytes()).unwrap();
    assert!(matches!(tokenizer.encode("<mask>"), Err(TextError::ControlToken { bytes: 6 })));
    assert_eq!(tokenizer.encode("hello").unwrap(), [1]);
}

#[test]
fn bytes_that_are_no_tokenizer_are_refused() {
    for bytes in [&b""[..], b"{}", b"\xff\xfe", br#"{"model":{"type":"BPE","vocab":{},"merges":[["a","b"]]}}"#] {
        assert!(matches!(Tokenizer::from_bytes(bytes), Err(TextError::Load(_))));
    }
}

#[test]
fn padding_and_truncation_of_the_file_are_ignored() {
    let json = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0},
        "padding":{"strategy":{"Fixed":8},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,
        "pad_token":"a"},"added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}}"#;
    assert_eq!(Tokenizer::from_bytes(json.as_bytes()).unwrap().encode("abba").unwrap(), [0, 1, 1, 0]);
}

#[test]
fn a_character_is_never_split() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("é👍").unwrap();
    let mut incremental = Incremental::new(&tokenizer);
    let pushes: Vec<String> = ids.chunks(1).map(|id| incremental.push(id)).collect();
    assert_eq!(pushes, ["", "é", "", "", "", "👍"]);
    assert_eq!(incremental.finish(), "");
    let mut incremental = Incremental::new(&tokenizer);
    assert_eq!(incremental.push(&ids[..1]), "");
    assert_eq!(incremental.finish(), "\u{FFFD}");
}

/// All pushes and the finish, joined.
fn incrementally(tokenizer: &Tokenizer, ids: &[u32], sizes: &[usize]) -> String {
    let mut incremental = Incremental::new(tokenizer);
    let (mut text, mut rest) = (String::new(), ids);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*size).min(rest.len()));
        text += &incremental.push(now);
        rest = later;
    }
    text + &incremental.finish()
}

#[test]
fn a_decoder_that_rewrites_its_past_never_panics() {
    let vocab = (0..=255u32).map(|b| (format!("<0x{b:02X}>"), b)).collect::<tokenizers::models::bpe::Vocab>();
    let bpe = BPE::builder().vocab_and_merges(vocab, vec![]).byte_fallback(true).build().unwrap();
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_decoder(Some(Sequence::new(vec![ByteFallback::default().into(), Fuse::default().into()])));
    let tokenizer = Tokenizer::from_bytes(inner.to_string(false).unwrap().as_bytes()).unwrap();
    assert_eq!(incrementally(&tokenizer, &[0xE2, 0x82, 0xAC, 0x41], &[1]), "€A");
    for id in 0x80..=0xFF {
        let _ = incrementally(&tokenizer, &[0x41, id, 0x42, 0xE2, id, id, 0xAC], &[1]);
    }
}

static TOKENIZERS: LazyLock<[Tokenizer; 2]> =
    LazyLock::new(|| [byte_level(), crate::starter::tokenizer::load().unwrap()]);

proptest! {
    #[test]
    fn pushes_join_to_the_whole(text in any::<String>(), sizes in prop::collection::vec(1usize..9, 1..8)) {
        for tokenizer in TOKENIZERS.iter() {
            let ids = tokenizer.encode(&text.repeat(3)).unwrap();
            prop_assert_eq!(incrementally(tokenizer, &ids, &sizes), tokenizer.decode(&ids));
        }
    }

    #[test]
    fn pushes_join_to_the_whole_even_of_nonsense(
        ids in prop::collection::vec(0u32..600, 0..300),
        sizes in prop::collection::vec(1usize..9, 1..8),
    ) {
        for tokenizer in TOKENIZERS.iter() {
            prop_assert_eq!(incrementally(tokenizer, &ids, &sizes), tokenizer.decode(&ids));
        }
    }
}
