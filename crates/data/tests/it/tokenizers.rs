//! Training, exactness, foreign files.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use tritrain_data::{Error, TokenKind, Tokenizer};
use tritrain_files::Disk;

use crate::common::{folder, prose, put};

fn trained(vocab: u32) -> Tokenizer {
    Tokenizer::train(&[prose(1, 300), prose(2, 300)], vocab).unwrap()
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn training_is_deterministic_on_any_number_of_threads_and_in_any_order() {
    let pieces: Vec<String> = (0..40).map(|i| prose(i, 40)).collect();
    let first = on_threads(1, || Tokenizer::train(&pieces, 600).unwrap());
    let backward: Vec<&String> = pieces.iter().rev().collect();
    let second = on_threads(4, || Tokenizer::train(&backward, 600).unwrap());
    assert_eq!(first.json(), second.json());
    assert_eq!(first.hash(), second.hash());
}

#[test]
fn sizes_and_ids() {
    let tokenizer = trained(320);
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (320, 0));
    assert!(tokenizer.bytes_of(0).is_empty());
    assert!((1..320).all(|id| !tokenizer.bytes_of(id).is_empty()));
    // No text, no merges; little text, few.
    assert_eq!(Tokenizer::train::<&str>(&[], 5000).unwrap().vocab_size(), 257);
    let little = Tokenizer::train(&["aaaa aaaa bbbb"], 5000).unwrap().vocab_size();
    assert!((258..270).contains(&little), "{little}");
}

#[test]
fn merges_shorten_text() {
    let (small, large) = (trained(257), trained(600));
    let text = prose(7, 100);
    assert_eq!(small.encode(&text).unwrap().len(), text.len());
    assert!(large.encode(&text).unwrap().len() * 3 < text.len());
}

#[test]
fn special_tokens_in_text_are_text() {
    let tokenizer = trained(400);
    for text in ["<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|> <|endoftext|>\n"] {
        let tokens = tokenizer.encode(text).unwrap();
        assert!(!tokens.contains(&tokenizer.eos()), "{tokens:?}");
        assert_eq!(tokenizer.decode(&tokens), text);
    }
    // Even if the text it was trained on is full of them.
    let tokenizer = Tokenizer::train(&["x <|endoftext|> ".repeat(1000)], 400).unwrap();
    assert!(!tokenizer.encode("<|endoftext|>").unwrap().contains(&tokenizer.eos()));
}

#[test]
fn a_saved_tokenizer_is_the_same() {
    let dir = folder();
    let tokenizer = trained(400);
    let path = dir.path().join("tokenizer.json");
    tokenizer.save(&Disk, &path).unwrap();
    let again = Tokenizer::from_file(&path).unwrap();
    assert_eq!(again.hash(), tokenizer.hash());
    assert_eq!(again.encode("the river").unwrap(), tokenizer.encode("the river").unwrap());
    assert_eq!(again.hash(), blake3::hash(again.json().as_bytes()).to_hex().as_str());
}

#[test]
fn a_stream_holds_back_what_is_not_a_character_yet() {
    // Bytes only, so that 🙂 is four tokens.
    let tokenizer = Tokenizer::train::<&str>(&[], 257).unwrap();
    let tokens = tokenizer.encode("a🙂é").unwrap();
    let mut stream = tokenizer.decode_stream();
    let out: Vec<_> = tokens.iter().map(|&id| stream.push(id)).collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(out, [text("a"), None, None, None, text("🙂"), None, text("é")]);
    assert_eq!(stream.finish(), None);
    let mut stream = tokenizer.decode_stream();
    assert_eq!(stream.push(tokens[1]), None);
    assert_eq!(stream.push(tokens[0]), text("\u{fffd}a"));
    assert_eq!(stream.push(tokens[1]), None);
    assert_eq!(stream.push(99_999), None);
    assert_eq!(stream.push(tokenizer.eos()), None);
    assert_eq!(stream.finish(), text("\u{fffd}"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn decoding_undoes_encoding(text in r"(\PC|[ \n\t\r]|<\|endoftext\|>|the|river|it's|.){0,60}") {
        let tokenizer = shared();
        let tokens = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens), text);
        prop_assert!(!tokens.contains(&tokenizer.eos()));
    }

    /// Any tokens, also such as no text gives: the stream and the whole agree.
    #[test]
    fn streams_say_what_decode_says(tokens in prop::collection::vec(0u32..420, 0..80)) {
        let tokenizer = shared();
        let mut stream = tokenizer.decode_stream();
        let mut text: String = tokens.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.finish());
        prop_assert_eq!(text, tokenizer.decode(&tokens));
    }

    /// The fast way and the crate `tokenizers` agree.
    #[test]
    fn encoding_is_that_of_the_crate(text in r"(\PC|[ \n\t\r]|the| river|'s|[a-z]{1,30}|.){0,60}") {
        let tokenizer = shared();
        let reference = tokenizers::Tokenizer::from_bytes(tokenizer.json()).unwrap();
        let mut reference = reference;
        reference.set_encode_special_tokens(true);
        let expected = reference.encode(text.as_str(), false).unwrap();
        prop_assert_eq!(tokenizer.encode(&text).unwrap(), expected.get_ids());
    }
}

fn shared() -> &'static Tokenizer {
    static SHARED: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    SHARED.get_or_init(|| trained(400))
}

/// A trained tokenizer with its JSON changed.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, Error> {
    let mut value: Value = serde_json::from_str(shared().json()).unwrap();
    change(&mut value);
    Tokenizer::from_bytes(value.to_string().as_bytes(), Path::new("t.json"))
}

#[test]
fn foreign_tokenizers_that_lose_nothing() {
    let gpt2 =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let split = json!({"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s?\p{L}+|\s+"}, "behavior": "Isolated", "invert": false});
    let plain =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    for cutter in [
        json!({"type": "Sequence", "pretokenizers": [digits, gpt2]}),
        json!({"type": "Sequence", "pretokenizers": [split, plain]}),
    ] {
        let tokenizer = changed(|value| {
            value["pre_tokenizer"] = cutter;
            value["truncation"] =
                json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
            value["post_processor"] = gpt2.clone();
        })
        .unwrap();
        let mut reference = tokenizers::Tokenizer::from_bytes(tokenizer.json()).unwrap();
        reference.set_encode_special_tokens(true);
        for text in [prose(9, 20), "2024 it's ½ x1y22  z\n\n9".into()] {
            let tokens = tokenizer.encode(&text).unwrap();
            assert_eq!(tokens, reference.encode(text.as_str(), false).unwrap().get_ids());
            assert_eq!(tokenizer.decode(&tokens), text);
        }
    }
}

#[test]
fn other_names_of_the_end_of_text_and_gaps_in_the_ids() {
    let tokenizer = changed(|value| {
        value["added_tokens"][0]["content"] = json!("</s>");
        value["added_tokens"][0]["id"] = json!(500);
        let vocab = value["model"]["vocab"].as_object_mut().unwrap();
        vocab.remove("<|endoftext|>");
        vocab.insert("</s>".into(), json!(500));
    })
    .unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.vocab_size()), (500, 501));
    assert_eq!(tokenizer.decode(&tokenizer.encode("</s> x").unwrap()), "</s> x");
    assert!(tokenizer.bytes_of(450).is_empty());
}

#[test]
fn a_vocabulary_says_all_of_a_tokenizer_or_nothing() {
    let tokenizer = trained(320);
    let vocabulary = tokenizer.vocabulary().unwrap();
    assert_eq!(vocabulary.tokens.len(), 320);
    assert_eq!(vocabulary.tokens[0], ("<|endoftext|>".to_owned(), TokenKind::Special));
    assert_eq!(vocabulary.cut, Some("gpt-2"));
    // Every token of more than one byte is what a merge makes, in order.
    let made: Vec<String> = vocabulary.merges.iter().map(|merge| merge.replace(' ', "")).collect();
    let long = vocabulary.tokens.iter().skip(257);
    assert!(long.map(|(token, _)| token).eq(&made) && made.len() == 320 - 257);
    for (id, (token, _)) in vocabulary.tokens.iter().enumerate() {
        assert_eq!(*token, tokenizer.name_of(id as u32));
    }
    let cut = |change: fn(&mut Value)| changed(change).unwrap().vocabulary().map(|found| found.cut);
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let both = json!({ "type": "Sequence", "pretokenizers": [digits, level] });
    let found = changed(|file| file["pre_tokenizer"] = both).unwrap().vocabulary().unwrap().cut;
    assert_eq!(found, Some("smollm"));
    assert_eq!(cut(|file| file["pre_tokenizer"]["use_regex"] = json!(false)).unwrap(), None);
    let refused = cut(|file| file["model"]["ignore_merges"] = json!(true)).unwrap_err();
    assert!(refused.to_string().contains("ignore_merges = true"), "{refused}");
}

#[test]
fn tokenizers_that_are_refused() {
    let message = |result: Result<Tokenizer, Error>| {
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let check = |text: String, expected: &str| {
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("(use a byte-level BPE such as"), "{text}");
    };
    let from = |bytes: &[u8]| message(Tokenizer::from_bytes(bytes, Path::new("t.json")));
    check(from(b"{}"), "tokenizer t.json: expected a tokenizer.json of the crate tokenizers, found ");
    check(from(b"\xff\x00"), "tokenizer t.json: expected a tokenizer.json of the crate tokenizers, found ");
    let no_end = changed(|value| value["added_tokens"] = json!([]));
    check(message(no_end), "expected a special token for the end of text, found none of <|endoftext|>, ");
    let not_special = changed(|value| value["added_tokens"][0]["special"] = json!(false));
    check(message(not_special), "expected a special token for the end of text");
    let nfc = changed(|value| value["normalizer"] = json!({"type": "NFC"}));
    check(message(nfc), "expected decoding to undo encoding of ");
    let lower = changed(|value| value["normalizer"] = json!({"type": "Lowercase"}));
    check(message(lower), "expected decoding to undo encoding of ");
    let prefix = changed(|value| value["pre_tokenizer"]["add_prefix_space"] = json!(true));
    check(message(prefix), "expected decoding to undo encoding of ");
    let words =
        changed(|value| value["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}));
    check(message(words), "expected a BPE model, found another model");
    let decoder = changed(|value| value["decoder"] = Value::Null);
    check(message(decoder), "expected a byte-level decoder, found another decoder or none");
    let byte = changed(|value| {
        value["model"]["vocab"].as_object_mut().unwrap().remove("~").unwrap();
    });
    check(message(byte), "expected a token for each byte of ordinary text, found none for 0x7e");
    // Control characters may be missing, as in SmolLM2's, but then no text has them.
    let control = changed(|value| {
        value["model"]["vocab"].as_object_mut().unwrap().remove("Ą").unwrap();
    });
    let control = control.unwrap();
    assert_eq!(control.decode(&control.encode("a\u{5}~").unwrap()), "a\u{5}~");
    let refused = control.encode("né\u{4}").unwrap_err().to_string();
    let expected = "expected text of bytes that it has tokens for, found byte 0x04 at byte 3 of a text";
    assert!(refused.contains(expected), "{refused}");
    let huge = changed(|value| value["model"]["vocab"]["ÿ"] = json!(4_000_000_000u32));
    check(message(huge), "expected ids below 1048576, found 4000000000");
    let dropout = changed(|value| value["model"]["dropout"] = json!(0.1));
    check(message(dropout), "expected encoding without chance, found BPE dropout");

    let dir = folder();
    let absent = message(Tokenizer::from_file(&dir.path().join("absent.json")));
    assert!(absent.starts_with("cannot find "), "{absent}");
    let path = put(dir.path(), "cut.json", &shared().json()[..1000]);
    check(message(Tokenizer::from_file(&path)), "expected a tokenizer.json of the crate tokenizers");
}
