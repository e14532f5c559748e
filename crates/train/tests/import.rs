//! Import: folders of transformers put together by hand, our own exports back, and what is refused.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tritrain_backend::Cpu;
use tritrain_data::Tokenizer;
use tritrain_files::{
    Disk,
    tensors::{Dtype, TensorView, save},
};
use tritrain_model::{Gate, Model, Precision};
use tritrain_train::{Hf, LinearClass, Loaded, Target, export, import, load, logits};
use tritrain_trit::{blocks::Block, rng::Stream};

const DIM: usize = 256;
const FFN: usize = 512;
const KV: usize = 128;
const LAYERS: usize = 2;
/// Rows of the embedding: more than the tokenizer has tokens.
const ROWS: usize = 320;

/// A folder of transformers with a model of random numbers.
struct Folder {
    dir: tempfile::TempDir,
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Folder {
    fn new(kind: &str) -> Folder {
        let config = json!({"model_type": kind, "hidden_act": "silu", "hidden_size": DIM, "num_hidden_layers": LAYERS,
            "intermediate_size": FFN, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": ROWS,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "tie_word_embeddings": false});
        let mut folder = Folder { dir: tempfile::tempdir().unwrap(), config, tensors: BTreeMap::new() };
        for (name, rows, cols) in
            [("model.embed_tokens", ROWS, DIM), ("lm_head", ROWS, DIM), ("model.norm", 1, DIM)]
        {
            folder.random(name, rows, cols);
        }
        for n in 0..LAYERS {
            for (name, rows, cols) in [
                ("input_layernorm", 1, DIM),
                ("post_attention_layernorm", 1, DIM),
                ("self_attn.q_proj", DIM, DIM),
                ("self_attn.k_proj", KV, DIM),
                ("self_attn.v_proj", KV, DIM),
                ("self_attn.o_proj", DIM, DIM),
                ("mlp.gate_proj", FFN, DIM),
                ("mlp.up_proj", FFN, DIM),
                ("mlp.down_proj", DIM, FFN),
            ] {
                folder.random(&format!("model.layers.{n}.{name}"), rows, cols);
            }
            if kind == "bitnet" {
                folder.random(&format!("model.layers.{n}.self_attn.attn_sub_norm"), 1, DIM);
                folder.random(&format!("model.layers.{n}.mlp.ffn_sub_norm"), 1, FFN);
            }
            if kind == "qwen2" {
                for (at, (part, rows)) in [("q", DIM), ("k", KV), ("v", KV)].into_iter().enumerate() {
                    let stream = Stream::new((3 * n + at) as u64, 2, 0);
                    // Quarters: every type holds them.
                    let values = (0..rows as u64).map(|i| (8.0 * stream.normal(i)).round() / 8.0).collect();
                    let name = format!("model.layers.{n}.self_attn.{part}_proj.bias");
                    folder.tensors.insert(name, (vec![rows], values));
                }
            }
        }
        let tokenizer = Tokenizer::train(&["the cat sat on a mat. ".repeat(50)], 300).unwrap();
        tokenizer.save(&Disk, &folder.path().join("tokenizer.json")).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), r#"{"chat_template": "hello"}"#).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Normal numbers that fp16 and bf16 hold exactly: seven bits; gains are about 1.
    fn random(&mut self, name: &str, rows: usize, cols: usize) {
        let stream = Stream::new(self.tensors.len() as u64, 1, 0);
        let (mean, size) = if rows == 1 { (1.0, 0.3) } else { (0.0, 0.06) };
        let number = |index: usize| {
            let number: f32 = mean + size * stream.normal(index as u64);
            // Not so small that fp16 has fewer bits.
            if number.abs() < 1e-4 { 0.0 } else { f32::from_bits(number.to_bits() & 0xffff_0000) }
        };
        let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        self.tensors.insert(format!("{name}.weight"), (shape, (0..rows * cols).map(number).collect()));
    }

    /// Makes every matrix of the blocks codes times a scale of its own.
    fn ternarise(&mut self, scale: impl Fn(&str, usize) -> f32) {
        for (at, (name, (_, values))) in self.tensors.iter_mut().enumerate() {
            if name.contains("proj.weight") {
                let scale = scale(name, at);
                values.iter_mut().for_each(|w| {
                    *w = (f32::from(*w > 0.03) - f32::from(*w < -0.03)) * scale;
                });
            }
        }
    }

    /// Writes everything, the tensors in two files and in three types.
    fn write(&self) {
        fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
        let mut map = serde_json::Map::new();
        for part in 0..2 {
            let file = format!("model-{part}.safetensors");
            let of = self.tensors.iter().enumerate().filter(|(at, _)| at % 2 == part);
            let mut stored = Vec::new();
            for (at, (name, (shape, values))) in of {
                map.insert(name.clone(), json!(file));
                let bits = |v: &f32| match at % 3 {
                    0 => v.to_le_bytes().to_vec(),
                    1 => ((v.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
                    _ => half::f16::from_f32(*v).to_le_bytes().to_vec(),
                };
                let dtype = [Dtype::F32, Dtype::BF16, Dtype::F16][at % 3];
                stored.push((name, dtype, shape, values.iter().flat_map(bits).collect::<Vec<u8>>()));
            }
            let views = stored
                .iter()
                .map(|(name, dtype, shape, bytes)| TensorView::raw(name.as_str(), *dtype, shape, bytes));
            save(&Disk, &self.path().join(file), views, &BTreeMap::new()).unwrap();
        }
        let index = json!({"weight_map": map}).to_string();
        fs::write(self.path().join("model.safetensors.index.json"), index).unwrap();
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.tensors[&format!("{name}.weight")].1
    }

    /// Biases of queries, keys and values of block `n`.
    fn biases(&self, n: usize) -> Vec<f32> {
        let of = |part: &str| &self.tensors[&format!("model.layers.{n}.self_attn.{part}_proj.bias")].1[..];
        [of("q"), of("k"), of("v")].concat()
    }

    fn out(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn import(&self, name: &str) -> Loaded {
        self.write();
        import(&Disk, self.path(), &self.out(name), None).unwrap();
        load(&Disk, &self.out(name)).unwrap()
    }

    fn refused(&self, expected: &str) {
        self.write();
        let error = import(&Disk, self.path(), &self.out("refused"), None).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{expected:?} in {message:?}");
        assert_eq!(error.exit_code(), 2, "{message}");
        assert!(!self.out("refused").exists(), "nothing is left of {message:?}");
    }
}

/// Codes and scale of ternary matrices, by name.
type Codes = BTreeMap<String, (Vec<i8>, f32)>;

/// Weights and codes of an imported model, by name.
fn tensors(loaded: &Loaded) -> (BTreeMap<String, Vec<f32>>, Codes) {
    let backend = Cpu::new(2).unwrap();
    let model: Model<Cpu> = loaded.model(&backend).unwrap();
    let names = model.layout().specs.iter().map(|spec| spec.name.clone()).enumerate();
    let (mut floats, mut codes) = (BTreeMap::new(), BTreeMap::new());
    for (id, name) in names {
        match model.codes(&backend, id) {
            Some(of) => drop(codes.insert(name, of)),
            None => {
                let spec = &model.layout().specs[id];
                let numbers = model.values(&backend, id).numbers(&backend, spec.rows, spec.cols).into_owned();
                drop(floats.insert(name, numbers));
            }
        }
    }
    (floats, codes)
}

#[test]
fn every_number_of_a_folder_arrives() {
    for kind in ["llama", "qwen2"] {
        every_number_arrives(kind);
    }
}

fn every_number_arrives(kind: &str) {
    let folder = Folder::new(kind);
    let loaded = folder.import("model");
    let config = &loaded.config;
    assert_eq!(
        (config.dim, config.ffn, config.heads, config.kv_heads, config.layers),
        (DIM, FFN, 4, 2, LAYERS)
    );
    assert_eq!((config.precision, config.gate, config.context), (Precision::F32, Gate::Silu, 64));
    assert_eq!(
        (config.rope_theta, config.norm_eps, config.tied, config.sub_norm, config.qkv_bias),
        (50_000.0, 1e-6, false, false, kind == "qwen2")
    );
    let vocab = loaded.vocab;
    assert!(vocab < ROWS && vocab == loaded.tokenizer.vocab_size() as usize);
    let (found, _) = tensors(&loaded);
    let whole = |name: &str| folder.get(name).to_vec();
    let cut = |name: &str| folder.get(name)[..vocab * DIM].to_vec();
    assert!(found["embedding"] == cut("model.embed_tokens"), "embedding");
    assert!(found["head"] == cut("lm_head"), "head");
    assert!(found["norm"] == whole("model.norm"), "norm");
    for n in 0..LAYERS {
        let of = |part: &str| found[&format!("layers.{n}.{part}")].clone();
        let layer = |part: &str| whole(&format!("model.layers.{n}.{part}"));
        assert!(of("attn_norm") == layer("input_layernorm"), "attn_norm of block {n}");
        assert!(of("ffn_norm") == layer("post_attention_layernorm"), "ffn_norm of block {n}");
        let qkv = ["q", "k", "v"].map(|part| layer(&format!("self_attn.{part}_proj"))).concat();
        assert!(of("qkv") == qkv, "qkv of block {n}");
        assert!(kind != "qwen2" || of("qkv_bias") == folder.biases(n), "biases of block {n}");
        assert!(of("o") == layer("self_attn.o_proj"), "o of block {n}");
        assert!(
            of("gate_up") == [layer("mlp.gate_proj"), layer("mlp.up_proj")].concat(),
            "gate_up of block {n}"
        );
        assert!(of("down") == layer("mlp.down_proj"), "down of block {n}");
    }
    assert!(folder.out("model").join("tokenizer_config.json").exists());
    // A model that lies there is not replaced; a tokenizer of another model is found out.
    let again = import(&Disk, folder.path(), &folder.out("model"), None).unwrap_err().to_string();
    assert!(again.contains("exists; choose another folder"), "{again}");
    let other = Tokenizer::train(&["a dog barks at the cat, the bus and the dog. ".repeat(50)], vocab as u32)
        .unwrap();
    assert_eq!(other.vocab_size() as usize, vocab);
    other.save(&Disk, &folder.out("model").join("tokenizer.json")).unwrap();
    let error = load(&Disk, &folder.out("model")).unwrap_err().to_string();
    assert!(error.contains("it belongs to another model"), "{error}");
}

/// Largest difference over the largest magnitude.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let most = a.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / most
}

/// Scales that differ among q, k and v, and among gate and up, become one with the same codes, and the model computes
/// the same; biases go with them.
#[test]
fn ternary_models_keep_their_codes() {
    for kind in ["bitnet", "llama", "qwen2"] {
        let mut folder = Folder::new(kind);
        folder.ternarise(|_, at| 0.02 + 0.003 * at as f32);
        let loaded = folder.import("model");
        assert_eq!((loaded.config.precision, loaded.config.sub_norm), (Precision::Ternary, kind == "bitnet"));
        let (_, codes) = tensors(&loaded);
        for n in 0..LAYERS {
            let sign = |part: &str| -> Vec<i8> {
                let values = folder.get(&format!("model.layers.{n}.{part}_proj"));
                values.iter().map(|w| i8::from(*w > 0.0) - i8::from(*w < 0.0)).collect()
            };
            let of = |part: &str| &codes[&format!("layers.{n}.{part}")].0;
            assert!(
                of("qkv") == &["self_attn.q", "self_attn.k", "self_attn.v"].map(sign).concat(),
                "qkv of block {n}"
            );
            assert!(of("o") == &sign("self_attn.o"), "o of block {n}");
            assert!(of("gate_up") == &["mlp.gate", "mlp.up"].map(sign).concat(), "gate_up of block {n}");
            assert!(of("down") == &sign("mlp.down"), "down of block {n}");
        }
        // The same numbers as an f32 model: one weight of one matrix is another one, too small to show.
        let name = "model.layers.1.mlp.up_proj.weight";
        let (_, values) = folder.tensors.get_mut(name).unwrap();
        values[0] = 0.0009765625;
        let plain = folder.import("plain");
        assert_eq!(plain.config.precision, Precision::F32);
        let backend = Cpu::new(2).unwrap();
        let text: Vec<u32> = (0..40).map(|n| n * 7 % loaded.vocab as u32).collect();
        let expected = logits(&backend, &plain.model(&backend).unwrap(), &text);
        let found = logits(&backend, &loaded.in_floats(&backend).unwrap(), &text);
        let error = difference(&expected, &found);
        assert!(error < 2e-3, "{kind}: {error}");
    }
}

/// Through every format and back: the codes and scales are the same, and so are the logits, bit for bit.
#[test]
fn exports_come_back_as_they_were() {
    let backend = Cpu::new(2).unwrap();
    for kind in ["bitnet", "llama", "qwen2"] {
        let mut folder = Folder::new(kind);
        folder.config["tie_word_embeddings"] = json!(true);
        folder.tensors.remove("lm_head.weight");
        folder.ternarise(|name, _| if name.contains("mlp") { 0.0234375 } else { 0.015625 });
        let loaded = folder.import("model");
        assert_eq!(loaded.config.precision, Precision::Ternary);
        let text: Vec<u32> = (0..50).map(|n| n * 11 % loaded.vocab as u32).collect();
        let (floats, codes) = tensors(&loaded);
        let biases = |floats: &BTreeMap<String, Vec<f32>>| -> Vec<Vec<f32>> {
            (0..LAYERS).filter_map(|n| floats.get(&format!("layers.{n}.qkv_bias")).cloned()).collect()
        };
        assert!(kind != "qwen2" || biases(&floats) == [0, 1].map(|n| folder.biases(n)));
        let packed = [LinearClass::BitLinear, LinearClass::AutoBitLinear].map(Hf::Packed);
        // AutoBitLinear cannot add a bias.
        let packed = packed.into_iter().take(if kind == "qwen2" { 1 } else { 2 });
        let targets = packed.chain([Hf::Online]).map(Target::Hf);
        let blocks = [Block::F32, Block::Tq1_0, Block::Tq2_0, Block::Q2_0].map(Target::Gguf);
        for (at, target) in targets.chain(blocks).enumerate() {
            let end = if matches!(target, Target::Gguf(_)) { ".gguf" } else { "" };
            let exported = folder.out(&format!("export-{at}{end}"));
            export(&backend, &Disk, &loaded, target, &exported, &text).unwrap();
            let back = folder.out(&format!("back-{at}"));
            import(&Disk, &exported, &back, None).unwrap();
            let back = load(&Disk, &back).unwrap();
            // A GGUF file names no seldom option.
            assert_eq!(back.config, loaded.config, "{target:?}");
            let (its, found) = tensors(&back);
            assert!(found == codes, "codes and scales of {target:?}");
            assert!(biases(&its) == biases(&floats), "biases of {target:?}");
            assert_eq!(
                back.tokenizer.encode("the cat 12").unwrap(),
                loaded.tokenizer.encode("the cat 12").unwrap()
            );
            if let Target::Gguf(_) = target {
                same_in_place(&exported, &back, &text);
            }
        }
        if kind == "qwen2" {
            // Read as AutoBitLinear, which multiplies biases and codes by what is stored: 1/0.015625.
            let (exported, back) = (folder.out("export-0"), folder.out("as-auto"));
            let config = fs::read_to_string(exported.join("config.json")).unwrap();
            fs::write(exported.join("config.json"), config.replace("\"bitlinear\"", "\"autobitlinear\""))
                .unwrap();
            import(&Disk, &exported, &back, None).unwrap();
            let (found, _) = tensors(&load(&Disk, &back).unwrap());
            let expected = biases(&floats).into_iter().map(|of| of.iter().map(|bias| 64.0 * bias).collect());
            assert!(biases(&found) == expected.collect::<Vec<Vec<f32>>>());
        }
    }
}

/// A GGUF file computes where it lies what its import computes.
fn same_in_place(gguf: &Path, imported: &Loaded, text: &[u32]) {
    let (backend, placed) = (Cpu::new(2).unwrap(), load(&Disk, gguf).unwrap());
    assert_eq!((&placed.config, placed.vocab), (&imported.config, imported.vocab));
    assert_eq!(placed.tokenizer.hash(), imported.tokenizer.hash());
    assert!(tensors(&placed) == tensors(imported), "{}", gguf.display());
    let [found, expected] =
        [&placed, imported].map(|loaded| logits(&backend, &loaded.model(&backend).unwrap(), text));
    assert!(found == expected, "{}", gguf.display());
    assert_eq!(placed.embedding().unwrap(), imported.embedding().unwrap());
}

/// The sign of a scale is that of all codes.
#[test]
fn scales_of_gguf_below_zero_turn_codes_around() {
    let mut folder = Folder::new("bitnet");
    folder.config["tie_word_embeddings"] = json!(true);
    folder.tensors.remove("lm_head.weight");
    folder.ternarise(|_, _| 0.015625);
    let (backend, exported) = (Cpu::new(1).unwrap(), folder.out("model.gguf"));
    export(&backend, &Disk, &folder.import("model"), Target::Gguf(Block::Tq2_0), &exported, &[1, 2]).unwrap();
    let (_, before) = tensors(&load(&Disk, &exported).unwrap());
    let file = tritrain_files::gguf::GgufFile::open(&Disk, &exported).unwrap();
    let mut bytes = std::fs::read(&exported).unwrap();
    let data = file.tensor("blk.0.ffn_down.weight").unwrap().data;
    let at = bytes.windows(data.len()).position(|window| window == data).unwrap();
    bytes[at..at + data.len()].chunks_exact_mut(66).for_each(|block| block[65] ^= 0x80);
    let turned = folder.out("turned.gguf");
    std::fs::write(&turned, bytes).unwrap();
    let (_, after) = tensors(&load(&Disk, &turned).unwrap());
    for (name, (codes, scale)) in before {
        let sign = if name == "layers.0.down" { -1 } else { 1 };
        let expected: Vec<i8> = codes.iter().map(|code| sign * code).collect();
        assert!(after[&name] == (expected, scale), "{name}");
    }
}

#[test]
fn a_damaged_number_in_a_gguf_file_is_an_error() {
    let (backend, mut folder) = (Cpu::new(1).unwrap(), Folder::new("bitnet"));
    folder.config["tie_word_embeddings"] = json!(true);
    folder.tensors.remove("lm_head.weight");
    folder.ternarise(|_, _| 0.015625);
    let (exported, text) = (folder.out("model.gguf"), [1, 2, 3]);
    export(&backend, &Disk, &folder.import("model"), Target::Gguf(Block::Tq2_0), &exported, &text).unwrap();
    let placed = load(&Disk, &exported).unwrap();
    assert!(placed.model(&backend).is_ok());
    // The first numbers of the embedding, fp16, become NaN; the first codes of a matrix no codes.
    let file = tritrain_files::gguf::GgufFile::open(&Disk, &exported).unwrap();
    let bytes = std::fs::read(&exported).unwrap();
    for (name, expected) in [("token_embd.weight", "NaN"), ("blk.1.attn_q.weight", "TQ2_0")] {
        let data = file.tensor(name).unwrap().data;
        let at = bytes.windows(data.len()).position(|window| window == data).unwrap();
        let (mut broken, path) = (bytes.clone(), folder.out("broken.gguf"));
        broken[at..at + 2].fill(0xff);
        std::fs::write(&path, broken).unwrap();
        let error = load(&Disk, &path).unwrap().model(&backend).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("broken.gguf"), "{error}");
    }
}

#[test]
fn f32_models_come_back_from_gguf() {
    for kind in ["llama", "qwen2"] {
        f32_model_comes_back_from_gguf(kind);
    }
}

fn f32_model_comes_back_from_gguf(kind: &str) {
    let backend = Cpu::new(2).unwrap();
    let folder = Folder::new(kind);
    let loaded = folder.import("model");
    let text: Vec<u32> = (0..50).map(|n| n * 11 % loaded.vocab as u32).collect();
    let exported = folder.out("model.gguf");
    export(&backend, &Disk, &loaded, Target::Gguf(Block::F32), &exported, &text).unwrap();
    import(&Disk, &exported, &folder.out("back"), None).unwrap();
    let back = load(&Disk, &folder.out("back")).unwrap();
    assert_eq!(back.config, loaded.config);
    assert!(tensors(&back).0 == tensors(&loaded).0);
    same_in_place(&exported, &back, &text);
    let cut = import(&Disk, &exported, &folder.out("short"), Some(16)).unwrap();
    assert!(
        cut.config.context == 16 && cut.notes.iter().any(|note| note.contains("cut to 16")),
        "{:?}",
        cut.notes
    );
}

#[test]
fn what_cannot_be_held_is_refused_with_the_reason() {
    let with = |key: &str, value: Value, expected: &str| {
        let mut folder = Folder::new("llama");
        folder.config[key] = value;
        folder.refused(expected);
    };
    with("model_type", json!("gemma"), "model_type is \"gemma\"");
    with("sliding_window", json!(4096), "sliding window");
    with("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "its RoPE is scaled");
    with("rope_parameters", json!({"rope_type": "yarn"}), "its RoPE is of type \"yarn\"");
    with("hidden_act", json!("gelu"), "hidden_act is \"gelu\"");
    with("mlp_bias", json!(true), "mlp_bias");
    with("head_dim", json!(128), "head_dim is 128 in 4 heads of 256");
    with("num_attention_heads", json!(0), "number of heads is 0");
    with("num_key_value_heads", json!(3), "its kv_heads is 3");
    with("hidden_size", json!(1u64 << 40), "width is 1099511627776");
    with("num_hidden_layers", json!(1000), "it has 1000 layers and only");
    with("rms_norm_eps", json!(null), "rms_norm_eps is null");
    with("vocab_size", json!(100), "the embedding 100 rows");
    with("quantization_config", json!({"quant_method": "gptq"}), "quantised by \"gptq\"");
    let bitnet = json!({"quant_method": "bitnet", "use_rms_norm": true});
    with("quantization_config", bitnet, "norms of their own");

    let mut bias = Folder::new("qwen2");
    bias.tensors.insert("model.layers.0.self_attn.o_proj.bias".into(), (vec![DIM], vec![0.5; DIM]));
    bias.refused("model.layers.0.self_attn.o_proj.bias, which has no place");
    let zero = vec![0.0; DIM];
    bias.tensors.insert("model.layers.0.self_attn.o_proj.bias".into(), (vec![DIM], zero));
    bias.import("zero");
    let mut some = Folder::new("qwen2");
    some.tensors.remove("model.layers.1.self_attn.k_proj.bias").unwrap();
    some.refused("it has no tensor model.layers.1.self_attn.k_proj.bias");
    let mut broken = Folder::new("llama");
    broken.tensors.get_mut("model.norm.weight").unwrap().1[3] = f32::INFINITY;
    broken.refused("its norm holds inf");
    let mut absent = Folder::new("llama");
    absent.tensors.remove("model.layers.1.mlp.up_proj.weight").unwrap();
    absent.refused("it has no tensor model.layers.1.mlp.up_proj.weight");
    let empty = tempfile::tempdir().unwrap();
    let error = import(&Disk, empty.path(), &empty.path().join("out"), None).unwrap_err();
    assert!(error.to_string().contains("expected a GGUF file, or a folder of transformers"), "{error}");
}
