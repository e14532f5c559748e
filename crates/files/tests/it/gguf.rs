//! GGUF: files of the Python package `gguf` (`interop/golden.py`), round trips, and the hostile files of known bugs
//! in other readers.

use std::path::Path;

use half::f16;
use proptest::prelude::*;
use tritrain_files::faulty::Failure;
use tritrain_files::gguf::{Array, GgufFile, Spec, Value, Writer};
use tritrain_files::{Bytes, Disk, Error, FaultyStorage, Result, Storage};
use tritrain_trit::blocks::{self, Block};

const GOLDEN: &[u8] = include_bytes!("../golden/golden.gguf");

fn path() -> &'static Path {
    Path::new("model.gguf")
}

fn parse(bytes: &[u8]) -> Result<GgufFile> {
    GgufFile::parse(path(), Bytes::from(bytes.to_vec()))
}

/// A header written by hand, honest or not.
#[derive(Clone)]
struct Hand {
    magic: [u8; 4],
    version: u32,
    tensors: u64,
    keys: u64,
    /// Keys with types and values, then entries of tensors.
    body: Vec<u8>,
}

impl Hand {
    fn new() -> Hand {
        Hand { magic: *b"GGUF", version: 3, tensors: 0, keys: 0, body: Vec::new() }
    }

    fn text(mut self, text: &[u8]) -> Hand {
        self.body.extend((text.len() as u64).to_le_bytes());
        self.body.extend(text);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Hand {
        self.body.extend(bytes);
        self
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Hand {
        self.keys += 1;
        self.text(key.as_bytes()).raw(&kind.to_le_bytes()).raw(value)
    }

    fn tensor(mut self, name: &str, dims: &[u64], format: u32, offset: u64) -> Hand {
        self.tensors += 1;
        let mut hand = self.text(name.as_bytes()).raw(&(dims.len() as u32).to_le_bytes());
        for dim in dims {
            hand = hand.raw(&dim.to_le_bytes());
        }
        hand.raw(&format.to_le_bytes()).raw(&offset.to_le_bytes())
    }

    /// The header alone.
    fn head(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.extend(&self.body);
        bytes
    }

    /// With this many bytes of data from the next multiple of 32 on.
    fn file(&self, data: usize) -> Vec<u8> {
        let mut bytes = self.head();
        bytes.resize(bytes.len().next_multiple_of(32) + data, 1);
        bytes
    }
}

/// The rule that a file breaks, as its message begins.
fn refused(what: &str, bytes: &[u8]) -> String {
    let error = parse(bytes).map(drop).expect_err(what);
    assert!(matches!(error, Error::Broken { .. }), "{what}: {error}");
    let text = error.to_string();
    assert!(text.len() < 900, "{what}: the message is bounded");
    assert!(text.contains(" in model.gguf: expected ") && text.contains(", found "), "{what}: {text}");
    text
}

#[test]
fn metadata_of_the_gguf_package_are_read() {
    let file = parse(GOLDEN).unwrap();
    assert_eq!(file.text("general.architecture").unwrap(), "llama");
    assert_eq!(file.value("test.u8"), Some(Value::U8(200)));
    assert_eq!(file.value("test.i8"), Some(Value::I8(-100)));
    assert_eq!(file.value("test.u16"), Some(Value::U16(60000)));
    assert_eq!(file.value("test.i16"), Some(Value::I16(-30000)));
    assert_eq!(file.value("test.u32"), Some(Value::U32(4_000_000_000)));
    assert_eq!(file.value("test.i32"), Some(Value::I32(-2_000_000_000)));
    assert_eq!(file.value("test.u64"), Some(Value::U64((1 << 63) + 1)));
    assert_eq!(file.value("test.i64"), Some(Value::I64(-(1 << 62))));
    assert_eq!(file.value("test.f32"), Some(Value::F32(1e-5)));
    assert_eq!(file.value("test.f64"), Some(Value::F64(0.1)));
    assert!(file.flag("test.bool").unwrap());
    assert_eq!(file.text("test.text").unwrap(), "wörter 日本 🙂");
    assert_eq!(file.integer_in("llama.block_count", 1..=13).unwrap(), 2);
    assert_eq!(file.texts("tokenizer.ggml.tokens").unwrap(), ["<|endoftext|>", "a", "Ġb", "ab"]);
    assert_eq!(file.integers("tokenizer.ggml.token_type").unwrap(), [3, 1, 1, 1]);
    assert_eq!(file.texts("tokenizer.ggml.merges").unwrap(), ["a b"]);
    assert_eq!(file.metadata().count(), 19);
}

#[test]
fn tensors_of_the_gguf_package_are_read() {
    let file = parse(GOLDEN).unwrap();
    assert_eq!(file.names().count(), 11);
    let plain = file.tensor("plain").unwrap();
    assert_eq!((plain.block, &plain.shape[..]), (Block::F32, &[2, 5][..]));
    let cube = file.tensor("cube").unwrap();
    assert_eq!(cube.shape, [2, 3, 4]);
    assert_eq!(cube.floats().unwrap(), (0..24).map(|n| n as f32).collect::<Vec<_>>());
    let plain = plain.floats().unwrap();
    for name in file.names().filter(|name| name.starts_with("blk")) {
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.shape, [2, 256]);
        assert_eq!(name, format!("blk.0.{}.weight", tensor.block.name()));
        let weights = tensor.floats().unwrap();
        // The same weights in each format, with what it keeps of them.
        let keeps = match tensor.block {
            Block::F16 => 1e-3,
            Block::Bf16 => 1e-2,
            Block::Q8_0 => 2e-2,
            Block::Q4_0 | Block::Q4_1 | Block::Q5_0 | Block::Q5_1 => 0.3,
            _ => continue, // ternary codes of weights that are not
        };
        for (row, column) in [(0, 0), (0, 4), (1, 2)] {
            let (found, expected) = (weights[row * 256 + column], plain[row * 5 + column]);
            assert!((found - expected).abs() < keeps, "{name}: {found} for {expected}");
        }
        assert!(tensor.codes().is_err(), "{name} is not ternary");
    }
    let (codes, scales) = file.tensor("blk.0.TQ2_0.weight").unwrap().codes().unwrap();
    assert_eq!((codes.len(), scales.len()), (512, 2));
    assert_eq!(file.tensor("blk.0.TQ1_0.weight").unwrap().codes().unwrap(), (codes, scales));
    let error = file.tensor("none").unwrap_err();
    assert!(error.to_string().contains("one named none"), "{error}");
}

#[test]
fn a_getter_insists_on_the_type() {
    let file = parse(GOLDEN).unwrap();
    let wrong = [
        file.text("test.u8").map(drop),
        file.integer("test.text").map(drop),
        file.integer("test.i8").map(drop),
        file.float("test.u32").map(drop),
        file.flag("test.u8").map(drop),
        file.texts("test.text").map(drop),
        // Scores declared as something else were read as f32 elsewhere (llama.cpp PR 26690).
        file.integers("tokenizer.ggml.scores").map(drop),
        file.texts("tokenizer.ggml.token_type").map(drop),
        file.integers("tokenizer.ggml.tokens").map(drop),
    ];
    for result in wrong {
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("type of key "), "{error}");
    }
    let scores = file.integers("tokenizer.ggml.scores").unwrap_err().to_string();
    assert!(scores.contains("an array of integers, found an array of f32"), "{scores}");
    let missing = file.text("general.name").unwrap_err().to_string();
    assert!(missing.contains("none of this name"), "{missing}");
}

#[test]
fn counts_and_ids_are_held_to_a_range() {
    let byte = |key: &str, value: i32| Hand::new().key(key, 5, &value.to_le_bytes()).file(0);
    let file = parse(&byte("llama.block_count", 513)).unwrap();
    let error = file.integer_in("llama.block_count", 1..=512).unwrap_err().to_string();
    assert!(error.contains("expected 1 to 512, found 513"), "{error}");
    // An end of text beyond the vocabulary, and a token -1.
    let file = parse(&byte("tokenizer.ggml.eos_token_id", 4)).unwrap();
    assert!(file.integer_in("tokenizer.ggml.eos_token_id", 0..=3).is_err());
    assert_eq!(file.integer_in("tokenizer.ggml.eos_token_id", 0..=4).unwrap(), 4);
    let file = parse(&byte("tokenizer.ggml.eos_token_id", -1)).unwrap();
    assert!(file.integer_in("tokenizer.ggml.eos_token_id", 0..=3).is_err());
}

#[test]
fn every_truncation_is_refused() {
    // The last tensor's padding may be missing: its data may not.
    let end = GOLDEN.len();
    for len in 0..end {
        refused(&format!("{len} bytes"), &GOLDEN[..len]);
    }
    refused("one byte more", &[GOLDEN, &[0]].concat());
    let short = Hand::new().tensor("a", &[3], 0, 0);
    assert!(parse(&short.file(12)).is_ok() && parse(&short.file(32)).is_ok());
    for data in (0..12).chain(13..32).chain(33..70) {
        refused(&format!("{data} bytes of data"), &short.file(data));
    }
}

#[test]
fn no_flipped_bit_makes_it_panic() {
    for bit in 0..GOLDEN.len() * 8 {
        let mut bytes = GOLDEN.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        use_all(&bytes);
    }
}

/// Reads everything that a file says it holds.
fn use_all(bytes: &[u8]) {
    let Ok(file) = parse(bytes) else { return };
    for (key, value) in file.metadata() {
        // As text: a NaN is no NaN.
        assert_eq!(format!("{:?}", file.value(key)), format!("{:?}", Some(value)));
        let _ = (file.text(key), file.integer(key), file.float(key), file.texts(key), file.integers(key));
    }
    for name in file.names() {
        let tensor = file.tensor(name).unwrap();
        let _ = (tensor.floats(), tensor.codes());
    }
}

#[test]
fn hostile_counts_are_refused_before_anything_is_sized() {
    // 24 bytes that ask for 61 GB and more (antonellof/ferrox PR 24, antirez/ds4 PR 545, candle issue 3533).
    for count in [1u64, 500_000_000, 1 << 32, 1 << 63, u64::MAX] {
        let keys = Hand { keys: count, ..Hand::new() };
        assert!(refused("keys", &keys.head()).starts_with("number of keys"), "{count}");
        let tensors = Hand { tensors: count, ..Hand::new() };
        assert!(refused("tensors", &tensors.head()).starts_with("number of tensors"), "{count}");
        for kind in [0u32, 4, 7, 8, 10] {
            let array = [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
            let text = refused("array", &Hand::new().key("a", 9, &array).head());
            assert!(text.starts_with("length of a"), "{kind} {count}: {text}");
        }
    }
    let many = Hand { keys: 4097, ..Hand::new() }.raw(&[0; 1 << 20]);
    assert!(refused("more keys than any model has", &many.head()).contains("at most 4096"));
}

#[test]
fn hostile_lengths_of_texts_are_refused() {
    // calloc(n + 1) with n = 2^64 - 1 (ggml PR 709, PowerInfer issue 256).
    for len in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, 9] {
        let len = len.to_le_bytes();
        let key = Hand { keys: 1, ..Hand::new() }.raw(&len).raw(b"genera");
        assert!(refused("key", &key.head()).starts_with("length of key 0"));
        let value = Hand::new().key("a", 8, &[&len[..], b"12345678"].concat());
        assert!(refused("value", &value.head()).starts_with("length of a"));
        let item = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &len, b"12345678"].concat();
        assert!(refused("item", &Hand::new().key("a", 9, &item).head()).starts_with("length of a"));
        let name = Hand { tensors: 1, ..Hand::new() }.raw(&len).raw(&[b'a'; 40]);
        if u64::from_le_bytes(len) > 40 {
            assert!(refused("name", &name.head()).starts_with("length of tensor name"));
        }
    }
    let long = "k".repeat((64 << 10) + 1);
    assert!(refused("long key", &Hand::new().key(&long, 0, &[1]).head()).starts_with("length of key 0"));
    let long = vec![b'v'; (1 << 20) + 1];
    let value = Hand { keys: 1, ..Hand::new() }.text(b"a").raw(&8u32.to_le_bytes()).text(&long);
    assert!(refused("long value", &value.head()).starts_with("length of a"));
}

#[test]
fn hostile_shapes_are_refused() {
    // More dimensions than places for them (ggml PR 709, gguf-tools issue 25).
    for dims in [0usize, 5, 8] {
        let tensor = Hand::new().tensor("a", &vec![1; dims], 0, 0);
        assert!(refused("dimensions", &tensor.file(4)).starts_with("number of dimensions of tensor a"));
    }
    let claimed = Hand { tensors: 1, ..Hand::new() }.text(b"a").raw(&u32::MAX.to_le_bytes()).raw(&[0; 20]);
    assert!(refused("dimensions", &claimed.file(0)).starts_with("number of dimensions"));
    // Products that wrap (llama.cpp PR 18674, CVE-2026-33298; candle PRs 3588, 3714, 3970).
    let wraps: [&[u64]; 5] = [
        &[1 << 42 | 1, 1 << 22],
        &[u64::MAX],
        &[1 << 62, 1 << 62, 1 << 62, 1 << 62],
        &[1 << 63, 2],
        &[1 << 32, 1 << 32],
    ];
    for dims in wraps {
        let text = refused("product", &Hand::new().tensor("a", dims, 0, 0).file(4));
        assert!(text.starts_with("shape of tensor a") || text.starts_with("data of tensor a"), "{text}");
    }
    let zero = Hand::new().tensor("a", &[4, 0], 0, 0);
    assert!(refused("empty", &zero.file(0)).starts_with("dimension of tensor a"));
    let part = Hand::new().tensor("a", &[255, 2], 35, 0);
    assert!(refused("part of a block", &part.file(132)).contains("a multiple of 256, for TQ2_0, found 255"));
    // Sums that wrap (llama.cpp PR 14595, CVE-2025-53630; past a bound on memory, CVE-2026-27940).
    let half = 1u64 << 61;
    let sum = Hand::new().tensor("a", &[half], 24, 0).tensor("b", &[half], 0, half * 4);
    refused("integers", &sum.file(8));
    let size = 1u64 << 63;
    let sum =
        Hand::new().tensor("a", &[1 << 61], 0, 0).tensor("b", &[1 << 61], 0, size).tensor("c", &[4], 0, 0);
    let text = refused("sum", &sum.file(16));
    assert!(text.starts_with("shape of tensor b"), "{text}");
    let sum = Hand::new().tensor("a", &[(1 << 62) - 1], 0, 0);
    let text = refused("padding of the sum", &sum.file(16));
    assert!(text.starts_with("shape of tensor a"), "{text}");
}

#[test]
fn hostile_offsets_are_refused() {
    // Beyond the end: a read of what lies behind in memory (Ollama CVE-2026-7482).
    let one = |offset: u64, data: usize| Hand::new().tensor("a", &[8], 0, offset).file(data);
    assert!(refused("behind the end", &one(0, 31)).starts_with("data of tensor a"));
    for offset in [1, 32, 64, u64::MAX, u64::MAX - 31, 1 << 63] {
        assert!(refused("gap", &one(offset, 128)).starts_with("offset of tensor a"), "{offset}");
    }
    let two = |second: u64, data: usize| {
        Hand::new().tensor("a", &[9], 0, 0).tensor("b", &[8], 0, second).file(data)
    };
    assert!(parse(&two(64, 96)).is_ok());
    for offset in [0, 32, 36, 63, 65, 96] {
        assert!(refused("overlap or gap", &two(offset, 128)).starts_with("offset of tensor b"), "{offset}");
    }
    assert!(refused("bytes left over", &two(64, 97)).starts_with("length of the file"));
}

#[test]
fn hostile_alignments_are_refused() {
    let with = |kind: u32, value: &[u8]| {
        Hand::new().key("general.alignment", kind, value).tensor("a", &[8], 0, 0).file(4096)
    };
    for alignment in [0u32, 1, 4, 7, 12, 33, 8192, 1 << 31, u32::MAX] {
        let text = refused("alignment", &with(4, &alignment.to_le_bytes()));
        assert!(text.starts_with("general.alignment"), "{alignment}: {text}");
    }
    // The wrong type aborts elsewhere.
    for (kind, value) in [(5u32, 32u64), (10, 32), (6, 32), (0, 32)] {
        let len = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8][kind as usize];
        let text = refused("type", &with(kind, &value.to_le_bytes()[..len]));
        assert!(text.starts_with("general.alignment") && text.contains("a u32"), "{text}");
    }
    let text = refused("text", &with(8, &[&2u64.to_le_bytes()[..], b"32"].concat()));
    assert!(text.contains("found text"), "{text}");
    for alignment in [8u32, 64, 4096] {
        let head = Hand::new().key("general.alignment", 4, &alignment.to_le_bytes()).tensor("a", &[2], 0, 0);
        let mut bytes = head.head();
        bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
        bytes.extend([0, 0, 128, 63, 0, 0, 0, 64]);
        assert_eq!(parse(&bytes).unwrap().tensor("a").unwrap().floats().unwrap(), [1.0, 2.0], "{alignment}");
    }
}

#[test]
fn hostile_names_keys_and_types_are_refused() {
    let long = "a".repeat(64);
    // A NUL hides a tensor from scanners (safetensors issue 748).
    for name in ["", "a\0b", "../a", "a b", "ü", "a/b", &long] {
        let text = refused("name", &Hand::new().tensor(name, &[8, 1, 1], 0, 0).raw(&[0; 8]).file(32));
        assert!(text.starts_with("tensor name"), "{name:?}: {text}");
    }
    let twice = Hand::new().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32);
    assert!(refused("name twice", &twice.file(64)).contains("a twice"));
    let twice = Hand::new().key("a", 0, &[1]).key("a", 0, &[1]);
    assert!(refused("key twice", &twice.file(0)).contains("a twice"));
    for key in ["", "a\0b", "a b", "ü"] {
        let text = refused("key", &Hand::new().key(key, 10, &[1; 8]).file(0));
        assert!(text.starts_with("key 0"), "{key:?}: {text}");
    }
    for kind in [13u32, 255, u32::MAX] {
        assert!(refused("type", &Hand::new().key("a", kind, &[0; 16]).file(0)).starts_with("type of a"));
        let array = [&kind.to_le_bytes()[..], &[0; 8]].concat();
        assert!(refused("type of items", &Hand::new().key("a", 9, &array).file(0)).starts_with("type of a"));
    }
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 12]].concat();
    assert!(refused("arrays of arrays", &Hand::new().key("a", 9, &nested).file(0)).contains("of arrays"));
    assert!(refused("truth", &Hand::new().key("ab", 7, &[2]).file(0)).starts_with("truth value of ab"));
    let text = [&3u64.to_le_bytes()[..], &[b'a', 0xff, b'b']].concat();
    assert!(refused("UTF-8", &Hand::new().key("a", 8, &text).file(0)).contains("expected UTF-8"));
    for (format, name) in [(4, "removed"), (10, "Q2_K"), (24, "integers"), (28, "F64"), (1 << 20, "unknown")]
    {
        let text = refused("format", &Hand::new().tensor("a", &[256], format, 0).file(1024));
        assert!(text.starts_with("format of tensor a") && text.contains(name), "{text}");
    }
    let head = |magic: &[u8; 4], version: u32| Hand { magic: *magic, version, ..Hand::new() }.file(0);
    assert!(refused("magic", &head(b"GGML", 3)).starts_with("magic"));
    for version in [0, 1, 4, u32::MAX] {
        assert!(refused("version", &head(b"GGUF", version)).starts_with("version"));
    }
    assert!(refused("byte order", &head(b"GGUF", 3u32.swap_bytes())).contains("big endian"));
    assert_eq!(parse(&head(b"GGUF", 2)).unwrap().names().count(), 0);
}

#[test]
fn bytes_that_stand_for_no_codes_name_their_tensor() {
    let mut bytes = Hand::new().tensor("blk.0.w", &[256], 35, 0).file(66);
    let at = bytes.len() - 66;
    let file = parse(&bytes).unwrap();
    file.tensor("blk.0.w").unwrap().codes().unwrap(); // 0x01 everywhere
    bytes[at + 9] = 0xff;
    let file = parse(&bytes).unwrap();
    let error = file.tensor("blk.0.w").unwrap().codes().unwrap_err().to_string();
    assert!(error.starts_with("data of tensor blk.0.w") && error.contains("byte 9 is 255"), "{error}");
    file.tensor("blk.0.w").unwrap().floats().unwrap_err();
}

/// A file with every kind of value and two tensors, one of them ternary.
fn write(storage: &dyn Storage, path: &Path) -> Result<()> {
    let metadata: Vec<(String, Value<'_>)> = [
        ("general.architecture", Value::from("bitnet")),
        ("a.u8", Value::U8(1)),
        ("a.i8", Value::I8(-1)),
        ("a.u16", Value::U16(2)),
        ("a.i16", Value::I16(-2)),
        ("a.u32", Value::U32(3)),
        ("a.i32", Value::I32(-3)),
        ("a.u64", Value::U64(4)),
        ("a.i64", Value::I64(-4)),
        ("a.f32", Value::F32(0.5)),
        ("a.f64", Value::F64(0.25)),
        ("a.bool", Value::Bool(false)),
        ("a.texts", Value::Array(Array::texts(["x", "", "日本"]))),
        ("a.numbers", Value::Array(Array::i32(&[1, -1, i32::MIN]))),
        ("a.none", Value::Array(Array::i32(&[]))),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let spec = |name: &str, block, shape: &[usize]| Spec { name: name.into(), block, shape: shape.into() };
    let specs = [spec("norm", Block::F32, &[3]), spec("w", Block::Tq1_0, &[2, 512])];
    let mut writer = Writer::create(storage, path, &metadata, &specs)?;
    writer.push(&[1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat())?;
    let codes: Vec<i8> = (0..1024).map(|i| (i % 3) as i8 - 1).collect();
    let mut data = vec![0; 4 * 54];
    blocks::encode_codes(Block::Tq1_0, &codes, f16::from_f32(0.5), &mut data).unwrap();
    writer.push(&data)?;
    writer.finish()
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    write(&Disk, &path).unwrap();
    let file = GgufFile::open(&Disk, &path).unwrap();
    assert_eq!(file.metadata().count(), 15);
    assert_eq!(file.texts("a.texts").unwrap(), ["x", "", "日本"]);
    assert_eq!(file.integers("a.numbers").unwrap(), [1, -1, i64::from(i32::MIN)]);
    assert_eq!(file.tensor("norm").unwrap().floats().unwrap(), [1.0, 2.0, 3.0]);
    let (codes, scales) = file.tensor("w").unwrap().codes().unwrap();
    assert_eq!(codes[..4], [-1, 0, 1, -1]);
    assert_eq!(scales, [f16::from_f32(0.5); 4]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file");
}

#[test]
fn write_read_write_is_byte_identical() {
    for source in [GOLDEN.to_vec(), {
        let storage = FaultyStorage::new();
        storage.create_dir_all(Path::new("/d")).unwrap();
        write(&storage, Path::new("/d/a")).unwrap();
        storage.read(Path::new("/d/a")).unwrap()
    }] {
        let file = parse(&source).unwrap();
        let metadata: Vec<_> = file.metadata().map(|(key, value)| (key.to_owned(), value)).collect();
        let tensors: Vec<_> = file.names().map(|name| file.tensor(name).unwrap()).collect();
        let specs: Vec<_> = tensors
            .iter()
            .map(|t| Spec { name: t.name.to_owned(), block: t.block, shape: t.shape.clone() })
            .collect();
        let storage = FaultyStorage::new();
        storage.create_dir_all(Path::new("/d")).unwrap();
        let mut writer = Writer::create(&storage, Path::new("/d/a"), &metadata, &specs).unwrap();
        tensors.iter().for_each(|tensor| writer.push(tensor.data).unwrap());
        writer.finish().unwrap();
        assert_eq!(storage.read(Path::new("/d/a")).unwrap(), source);
    }
}

#[test]
fn a_fault_leaves_no_file() {
    let path = Path::new("/d/a.gguf");
    for at in 0.. {
        let storage = FaultyStorage::new();
        storage.create_dir_all(Path::new("/d")).unwrap();
        storage.fail_at(storage.operations() + at, Failure::Io, false);
        if write(&storage, path).is_ok() {
            assert!(at > 5, "every step was broken once");
            break;
        }
        storage.heal();
        if storage.exists(path).unwrap() {
            // Only the very last step, which makes the entry durable, may fail behind the rename.
            parse(&storage.read(path).unwrap()).unwrap();
        }
    }
}

#[test]
fn a_caller_cannot_write_what_would_not_be_read() {
    let storage = FaultyStorage::new();
    storage.create_dir_all(Path::new("/d")).unwrap();
    let path = Path::new("/d/a");
    let spec = |name: &str, block, shape: &[usize]| Spec { name: name.into(), block, shape: shape.into() };
    let good = spec("a", Block::F32, &[2]);
    let bad = [
        vec![spec("a b", Block::F32, &[2])],
        vec![spec("a", Block::Tq2_0, &[2, 255])],
        vec![spec("a", Block::F32, &[])],
        vec![spec("a", Block::F32, &[2, 0])],
        vec![spec("a", Block::F32, &[1; 5])],
        vec![spec("a", Block::F32, &[usize::MAX])],
        vec![good.clone(), good.clone()],
    ];
    let refused = |metadata: &[(String, Value<'_>)], specs: &[Spec]| {
        let error = Writer::create(&storage, path, metadata, specs).map(drop).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    };
    bad.iter().for_each(|specs| refused(&[], specs));
    let key = |key: &str, value| vec![(key.to_owned(), value)];
    refused(&key("", Value::U8(1)), &[]);
    refused(&key("a b", Value::U8(1)), &[]);
    refused(&key("general.alignment", Value::U32(3)), &[]);
    refused(&key("general.alignment", Value::U8(32)), &[]);
    refused(&[key("a", Value::U8(1)), key("a", Value::U8(1))].concat(), &[]);
    let mut writer = Writer::create(&storage, path, &[], std::slice::from_ref(&good)).unwrap();
    assert!(matches!(writer.push(&[0; 7]), Err(Error::Invalid { .. })));
    writer.push(&[0; 8]).unwrap();
    assert!(matches!(writer.push(&[0; 8]), Err(Error::Invalid { .. })));
    writer.finish().unwrap();
    let writer = Writer::create(&storage, path, &[], &[good]).unwrap();
    assert!(matches!(writer.finish(), Err(Error::Invalid { .. })));
}

#[test]
fn ten_thousand_tensors_are_quick() {
    let mut hand = Hand::new();
    for n in 0..10_000u64 {
        hand = hand.tensor(&format!("blk.{n}.attn_q.weight"), &[1], 0, 32 * n);
    }
    let bytes = hand.file(320_000);
    let start = std::time::Instant::now();
    assert_eq!(parse(&bytes).unwrap().names().count(), 10_000);
    // FAULTS D8 asks for 20 ms; the machine may be busy.
    assert!(start.elapsed().as_millis() < 200, "{:?}", start.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        words in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![0u64, 1, 255, 1 << 31, 1 << 32, 1 << 62, u64::MAX])), 0..3),
    ) {
        let mut bytes = GOLDEN.to_vec();
        // The header is most of it.
        for (index, byte) in changes {
            let at = index.index(1200);
            bytes[at] = byte;
        }
        for (index, word) in words {
            let at = index.index(1200);
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        use_all(&bytes);
    }
}
