//! Exports: what is in the files by their formats' own rules, refusals, and that a copy which is not the model is
//! found out. `interop/` does the same with the programs that read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tritrain_backend::Cpu;
use tritrain_data::{Source, Tokenizer, chat::ChatTemplate};
use tritrain_files::gguf::{Block, GgufFile};
use tritrain_files::tensors::{Dtype, TensorFile, TensorView, save};
use tritrain_files::{Disk, Storage};
use tritrain_model::{Gate, Layout, ModelConfig, Precision, TensorKind};
use tritrain_train::{
    Error, Floats, Hf, LinearClass, Loaded, Target, export, import, load, logits, tokens_of, verify,
};

const TEXT: &str = "the old river runs after the red fish, and the new oven after 12 loaves of bread. ";
const HF: [Hf; 3] = [Hf::Packed(LinearClass::AutoBitLinear), Hf::Packed(LinearClass::BitLinear), Hf::Online];

fn config() -> ModelConfig {
    ModelConfig { layers: 2, heads: 4, kv_heads: 2, ffn: 512, context: 32, ..ModelConfig::default() }
}

/// Numbers from -1 to 1 that depend on `seed` and look like noise.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A folder with a model of noise and its tokenizer. Queries, keys and values differ in magnitude.
struct Place {
    dir: tempfile::TempDir,
    backend: Cpu,
    loaded: Loaded,
    tokens: Vec<u32>,
}

impl Place {
    fn new(config: &ModelConfig) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::train(&[TEXT.repeat(50)], 300).unwrap();
        tokenizer.save(&Disk, &dir.path().join("tokenizer.json")).unwrap();
        let vocab = tokenizer.vocab_size() as usize;
        let layout = Layout::new(config, vocab);
        let weights: Vec<(Vec<usize>, Vec<f32>)> = layout
            .specs
            .iter()
            .enumerate()
            .map(|(id, spec)| {
                let mut values = noise(id as u64 + 1, spec.len());
                for (at, w) in values.iter_mut().enumerate() {
                    // Values of the first block are so small that all their codes are zero.
                    let values = if spec.name.starts_with("layers.0") { 0.01 } else { 0.03 };
                    let size = [0.05, 0.15, values][3 * at / spec.len()];
                    *w = match spec.kind {
                        TensorKind::Norm => 1.0 + 0.3 * *w,
                        TensorKind::Bias => 0.3 * *w,
                        _ => size * *w,
                    };
                }
                (spec.shape(), values)
            })
            .collect();
        let views = layout.specs.iter().zip(&weights);
        let views = views.map(|(spec, (shape, values))| TensorView::f32(spec.name.as_str(), shape, values));
        let metadata = BTreeMap::from([
            ("tritrain.model".to_owned(), serde_json::to_string(config).unwrap()),
            ("tritrain.vocab".to_owned(), vocab.to_string()),
        ]);
        save(&Disk, &dir.path().join("model.safetensors"), views, &metadata).unwrap();
        let loaded = load(&Disk, dir.path()).unwrap();
        let source = Source::Memory {
            name: "text".into(),
            documents: vec![tritrain_data::Document {
                domain: "a".into(),
                name: "a".into(),
                text: TEXT.repeat(3),
                ..Default::default()
            }],
        };
        let tokens = tokens_of(&loaded, &source).unwrap();
        Place { dir, backend: Cpu::new(2).unwrap(), loaded, tokens }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    fn export(&self, target: Target, name: &str) -> tritrain_train::Result<tritrain_train::Verified> {
        export(&self.backend, &Disk, &self.loaded, target, &self.out(name), &self.tokens)
    }

    fn verify(&self, path: &Path) -> tritrain_train::Result<tritrain_train::Verified> {
        verify(&self.backend, &Disk, &self.loaded, path, &self.tokens)
    }

    /// Codes and scale of a matrix of ours.
    fn codes(&self, name: &str) -> (Vec<i8>, f32) {
        let model = self.loaded.model(&self.backend).unwrap();
        let id = model.layout().specs.iter().position(|spec| spec.name == name).unwrap();
        model.codes(&self.backend, id).unwrap()
    }

    fn gguf(&self, name: &str) -> GgufFile {
        GgufFile::open(&Disk, &self.out(name)).unwrap()
    }
}

#[test]
fn ternary_files_hold_the_codes_and_scales_that_are_multiplied() {
    let place = Place::new(&config());
    for block in [Block::Tq1_0, Block::Tq2_0, Block::Q2_0, Block::F16, Block::F32] {
        let name = format!("{}.gguf", block.name());
        let verified = place.export(Target::Gguf(block), &name).unwrap();
        // The embedding alone is rounded, to fp16.
        assert_eq!(verified.rounded, usize::from(block != Block::F32), "{name}");
        assert_eq!(verified.tensors, 2 + 2 * 11);
        let file = place.gguf(&name);
        let (codes, scale) = place.codes("layers.1.qkv");
        let queries = file.tensor("blk.1.attn_q.weight").unwrap();
        assert_eq!((queries.block, &queries.shape[..]), (block, &[256, 256][..]));
        let expected: Vec<f32> = codes[..256 * 256].iter().map(|&code| f32::from(code) * scale).collect();
        assert_eq!(queries.floats().unwrap(), expected, "{name}: bitnet's rows are in our order");
        let values = file.tensor("blk.1.attn_v.weight").unwrap();
        let expected: Vec<f32> = codes[384 * 256..].iter().map(|&code| f32::from(code) * scale).collect();
        assert_eq!(values.floats().unwrap(), expected);
        assert_eq!(file.tensor("blk.0.ffn_sub_norm.weight").unwrap().shape, [512]);
        assert_eq!(file.text("general.architecture").unwrap(), "bitnet");
        assert_eq!(file.float("bitnet.rope.freq_base").unwrap(), 10_000.0);
        let tokens = file.texts("tokenizer.ggml.tokens").unwrap();
        assert_eq!(tokens.len(), place.loaded.vocab);
        assert_eq!(tokens[0], "<|endoftext|>");
        assert_eq!(file.text("tokenizer.ggml.pre").unwrap(), "gpt-2");
        let parts = file.texts("tokenizer.ggml.merges").unwrap();
        assert!(parts.iter().all(|merge| tokens.contains(&merge.replace(' ', "").as_str())));
        assert_eq!(place.verify(&place.out(&name)).unwrap(), verified);
    }
}

#[test]
fn rows_of_llama_turn_by_neighbours_as_ours_turn_by_halves() {
    let place = Place::new(&ModelConfig { sub_norm: false, ..config() });
    place.export(Target::Gguf(Block::F32), "a.gguf").unwrap();
    let file = place.gguf("a.gguf");
    assert_eq!(file.text("general.architecture").unwrap(), "llama");
    let (codes, scale) = place.codes("layers.0.qkv");
    let (dim, width) = (256, 64);
    let x = [noise(70, dim), noise(71, dim)];
    let product = |rows: &[f32], x: &[f32]| -> Vec<f64> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        rows.chunks_exact(dim).map(dot).collect()
    };
    // The first head of queries at position 7 and of keys at position 3, turned by either rule.
    let turn = |v: &[f64], at: f64, pair: &dyn Fn(usize) -> (usize, usize)| {
        let mut out = v.to_vec();
        for i in 0..width / 2 {
            let angle = at * 10_000f64.powf(-2.0 * i as f64 / width as f64);
            let (a, b) = pair(i);
            out[a] = v[a] * angle.cos() - v[b] * angle.sin();
            out[b] = v[a] * angle.sin() + v[b] * angle.cos();
        }
        out
    };
    let score = |q: &[f32], k: &[f32], pair: &dyn Fn(usize) -> (usize, usize)| -> f64 {
        let q = turn(&product(&q[..width * dim], &x[0]), 7.0, pair);
        let k = turn(&product(&k[..width * dim], &x[1]), 3.0, pair);
        q.iter().zip(&k).map(|(a, b)| a * b).sum()
    };
    let ours: Vec<f32> = codes.iter().map(|&code| f32::from(code) * scale).collect();
    let expected = score(&ours, &ours[256 * dim..], &|i| (i, i + width / 2));
    let [q, k] =
        ["q", "k"].map(|name| file.tensor(&format!("blk.0.attn_{name}.weight")).unwrap().floats().unwrap());
    let found = score(&q, &k, &|i| (2 * i, 2 * i + 1));
    assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
    let wrong = score(&q, &k, &|i| (i, i + width / 2));
    assert!((wrong / expected - 1.0).abs() > 1e-3, "the order of rows matters");
}

#[test]
fn biases_stand_where_qwen2_and_llama_have_them() {
    let biased = ModelConfig { sub_norm: false, qkv_bias: true, ..config() };
    let place = Place::new(&biased);
    let all = {
        let path = place.dir.path().join("model.safetensors");
        TensorFile::parse(&path, Disk.map(&path).unwrap()).unwrap().f32("layers.1.qkv_bias", &[512]).unwrap()
    };
    place.export(Target::Gguf(Block::Tq2_0), "a.gguf").unwrap();
    place.export(Target::Hf(HF[1]), "hf").unwrap();
    let (file, path) = (place.gguf("a.gguf"), place.out("hf").join("model.safetensors"));
    let hf = TensorFile::parse(&path, Disk.map(&path).unwrap()).unwrap();
    assert_eq!(file.text("general.architecture").unwrap(), "qwen2");
    let (codes, scale) = place.codes("layers.1.qkv");
    for (part, rows) in [("q", 0..256), ("k", 256..384), ("v", 384..512)] {
        let bias = file.tensor(&format!("blk.1.attn_{part}.bias")).unwrap();
        assert_eq!((bias.block, &bias.shape[..]), (Block::F32, &[rows.len()][..]));
        assert_eq!(bias.floats().unwrap(), all[rows.clone()], "{part}");
        let name = format!("model.layers.1.self_attn.{part}_proj.bias");
        assert_eq!(hf.f32(&name, &[rows.len()]).unwrap(), all[rows.clone()], "{part}");
        // Halves of a head turn together in qwen2: rows stay in our order.
        let matrix = file.tensor(&format!("blk.1.attn_{part}.weight")).unwrap().floats().unwrap();
        let own = codes[rows.start * 256..rows.end * 256].iter().map(|&code| f32::from(code) * scale);
        assert!(own.eq(matrix), "{part}");
    }
    let json = fs::read_to_string(place.out("hf").join("config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["model_type"], &json["attention_bias"]), (&"llama".into(), &true.into()));
    let zeros = hf.f32("model.layers.1.self_attn.o_proj.bias", &[256]).unwrap();
    assert!(zeros.iter().all(|bias| *bias == 0.0));
    // Not where its scale would multiply them; beside sub-norms in transformers alone.
    let error = place.export(Target::Hf(HF[0]), "auto").unwrap_err();
    assert!(error.to_string().contains("multiplies biases"), "{error}");
    let both = Place::new(&ModelConfig { sub_norm: true, ..biased });
    both.export(Target::Hf(HF[1]), "hf").unwrap();
    let error = both.export(Target::Gguf(Block::Tq2_0), "gguf").unwrap_err();
    assert!(error.to_string().contains("no biases of queries"), "{error}");
}

#[test]
fn transformers_reads_the_codes_and_scales_that_are_multiplied() {
    for sub_norm in [true, false] {
        let place = Place::new(&ModelConfig { sub_norm, gate: Gate::Relu2, tied: false, ..config() });
        let (codes, scale) = place.codes("layers.1.qkv");
        for (name, hf) in ["auto", "bit", "online"].into_iter().zip(HF) {
            let verified = place.export(Target::Hf(hf), name).unwrap();
            assert_eq!((verified.rounded, verified.largest_difference), (0, 0.0));
            let path = place.out(name).join("model.safetensors");
            let file = TensorFile::parse(&path, Disk.map(&path).unwrap()).unwrap();
            for (part, rows) in [("q", 0..256), ("k", 256..384), ("v", 384..512)] {
                let tensor = format!("model.layers.1.self_attn.{part}_proj.weight");
                let (count, expected) = (rows.len(), &codes[rows.start * 256..rows.end * 256]);
                if hf == Hf::Online {
                    // As WeightQuant: the mean magnitude of this part alone.
                    let masters = file.f32(&tensor, &[count, 256]).unwrap();
                    let mean = masters.iter().map(|w| w.abs()).sum::<f32>() / masters.len() as f32;
                    assert!((mean / scale - 1.0).abs() < 1e-4, "{part}: {mean} for {scale}");
                    let found = masters.iter().map(|w| (w / mean).round_ties_even().clamp(-1.0, 1.0) as i8);
                    assert!(found.eq(expected.iter().copied()), "{part}");
                    continue;
                }
                let packed = file.typed(&tensor, Dtype::U8, &[count / 4, 256]).unwrap();
                for (at, &code) in expected.iter().enumerate() {
                    // pack_weights: row r is in bits 2i of row r % quarter, i = r / quarter.
                    let (row, column) = (at / 256, at % 256);
                    let byte = packed[row % (count / 4) * 256 + column];
                    assert_eq!((byte >> (2 * (row / (count / 4))) & 3) as i8 - 1, code, "{part} {row}");
                }
                let stored = file.f32(&format!("{tensor}_scale"), &[1]).unwrap()[0];
                let expected = if hf == HF[0] { scale } else { 1.0 / scale };
                assert_eq!(stored, expected, "{hf:?}");
            }
            let json = fs::read_to_string(place.out(name).join("config.json")).unwrap();
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(json["hidden_act"], "relu2");
            assert_eq!(json["model_type"], if sub_norm { "bitnet" } else { "llama" });
            assert_eq!(
                (json["rms_norm_eps"].as_f64(), json["tie_word_embeddings"].as_bool()),
                (Some(1e-5), Some(false))
            );
            assert_eq!(place.verify(&place.out(name)).unwrap(), verified);
        }
    }
}

#[test]
fn f32_models_are_rounded_to_what_is_asked() {
    let config = ModelConfig { precision: Precision::F32, sub_norm: false, ffn: 300, ..config() };
    let place = Place::new(&config);
    let targets = [
        (Target::Gguf(Block::F32), 0),
        (Target::Gguf(Block::F16), 1 + 2 * 7),
        (Target::Gguf(Block::Bf16), 1 + 2 * 7),
        (Target::Hf(Hf::Plain(Floats::F32)), 0),
        // Norms as well.
        (Target::Hf(Hf::Plain(Floats::F16)), 2 + 2 * 9),
        (Target::Hf(Hf::Plain(Floats::Bf16)), 2 + 2 * 9),
    ];
    for (n, (target, rounded)) in targets.into_iter().enumerate() {
        let verified = place.export(target, &n.to_string()).unwrap();
        assert_eq!(verified.rounded, rounded, "{target:?}");
        assert_eq!(verified.largest_difference == 0.0, rounded == 0, "{target:?}");
        assert!(verified.divergence < 1e-3 && verified.tokens > 60, "{verified:?}");
    }
}

#[test]
fn what_a_target_cannot_hold_is_refused_with_the_reason() {
    let ternary = config();
    let f32 = ModelConfig { precision: Precision::F32, ..config() };
    let refused = [
        (ModelConfig { gate: Gate::Relu2, ..config() }, Target::Gguf(Block::Tq2_0), "relu²"),
        (ModelConfig { tied: false, ..config() }, Target::Gguf(Block::F32), "output head"),
        (ternary.clone(), Target::Gguf(Block::Bf16), "fp16 scales"),
        (f32.clone(), Target::Gguf(Block::Tq1_0), "f32"),
        (ternary.clone(), Target::Hf(Hf::Plain(Floats::F16)), "round activations"),
        (f32.clone(), Target::Hf(Hf::Online), "no codes"),
        (f32, Target::Hf(HF[0]), "no codes"),
        (ModelConfig { heads: 128, kv_heads: 1, ..config() }, Target::Hf(HF[1]), "keys have 2 rows"),
    ];
    for (config, target, reason) in refused {
        let place = Place::new(&config);
        let error = place.export(target, "a").unwrap_err();
        assert!(matches!(error, Error::Target { .. }) && error.exit_code() == 2, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(!place.out("a").exists());
    }
    Target::Gguf(Block::F32).check(&ModelConfig { tied: false, sub_norm: false, ..ternary }).unwrap();
}

#[test]
fn what_lies_there_is_kept_and_nothing_is_left_behind() {
    let place = Place::new(&config());
    for target in [Target::Gguf(Block::Tq2_0), Target::Hf(HF[0])] {
        place.export(target, "a").unwrap();
        let error = place.export(target, "a").unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
        assert_eq!(fs::read_dir(place.out("")).unwrap().count(), 1, "no temporary files");
        fs::rename(place.out("a"), place.dir.path().join(format!("{target:?}"))).unwrap();
    }
}

#[test]
fn a_copy_that_is_not_the_model_is_found_out() {
    let place = Place::new(&config());
    place.export(Target::Gguf(Block::Tq2_0), "a.gguf").unwrap();
    let good = fs::read(place.out("a.gguf")).unwrap();
    let file = place.gguf("a.gguf");
    let data = |name: &str| {
        let data = file.tensor(name).unwrap().data;
        let at = good.windows(data.len()).position(|window| window == data);
        at.unwrap()
    };
    let find = |text: &str| good.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    let places = [
        (data("blk.1.attn_k.weight") + 5, "blk.1.attn_k.weight"),
        (data("blk.0.ffn_down.weight") + 64, "blk.0.ffn_down.weight"),
        (data("token_embd.weight"), "token_embd.weight"),
        (data("output_norm.weight") + 3, "output_norm.weight"),
        (find("rope.freq_base") + 14 + 4, "bitnet.rope.freq_base"),
        (find("gpt-2"), "tokenizer.ggml.pre"),
        (find("<|endoftext|>") + 3, "tokenizer.ggml.tokens"),
    ];
    for (at, what) in places {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(place.out("b.gguf"), bytes).unwrap();
        let error = place.verify(&place.out("b.gguf")).unwrap_err();
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    let other = Place::new(&ModelConfig { rope_theta: 500_000.0, ..config() });
    let error = other.verify(&place.out("a.gguf")).unwrap_err();
    assert!(matches!(error, Error::Differs { .. }) && error.exit_code() == 5, "{error}");

    place.export(Target::Hf(HF[0]), "hf").unwrap();
    let tensors = place.out("hf").join("model.safetensors");
    let good = fs::read(&tensors).unwrap();
    let mut bytes = good.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&tensors, bytes).unwrap();
    let error = place.verify(&place.out("hf")).unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error}");
    fs::write(&tensors, good).unwrap();
    let path = place.out("hf").join("config.json");
    // The class decides whether the scale multiplies or divides: the wrong one loads and is noise.
    let json = fs::read_to_string(&path).unwrap().replace("autobitlinear", "bitlinear");
    fs::write(&path, json).unwrap();
    let error = place.verify(&place.out("hf")).unwrap_err();
    assert!(error.to_string().contains("scale"), "{error}");
}

#[test]
fn activations_in_floats_change_logits_a_little() {
    let place = Place::new(&config());
    let text = &place.tokens[..32];
    let (trained, floats) =
        (place.loaded.model(&place.backend).unwrap(), place.loaded.in_floats(&place.backend).unwrap());
    let [trained, floats] = [trained, floats].map(|model| logits(&place.backend, &model, text));
    let mean = trained.iter().zip(&floats).map(|(a, b)| (a - b).abs()).sum::<f32>() / trained.len() as f32;
    let size = trained.iter().map(|x| x.abs()).sum::<f32>() / trained.len() as f32;
    assert!(mean > 1e-5 * size && mean < 0.2 * size, "{mean} of {size}");
}

#[test]
fn files_of_a_model_that_chats_say_how() {
    let place = Place::new(&config());
    let template = ChatTemplate::plain(&place.loaded.tokenizer).unwrap();
    template.save(&Disk, place.dir.path()).unwrap();
    place.export(Target::Gguf(Block::F16), "chat.gguf").unwrap();
    place.export(Target::Hf(Hf::Packed(LinearClass::AutoBitLinear)), "chat").unwrap();
    for (file, name) in [("chat.gguf", "from-gguf"), ("chat", "from-hf")] {
        let into = place.dir.path().join(name);
        import(&Disk, &place.out(file), &into, None).unwrap();
        let found = load(&Disk, &into).unwrap().chat_template(&Disk).unwrap();
        assert_eq!(found.file().source(), template.file().source(), "{name}");
        assert_eq!(found.ends(&place.loaded.tokenizer), template.ends(&place.loaded.tokenizer), "{name}");
    }
    // A file of another template is another one.
    let text = format!("{}!", template.file().source());
    let other = ChatTemplate::new(Path::new("t"), text, "", "<|endoftext|>").unwrap();
    other.save(&Disk, place.dir.path()).unwrap();
    let error = place.verify(&place.out("chat.gguf")).unwrap_err().to_string();
    assert!(error.contains("tokenizer.chat_template"), "{error}");
}
