//! What is done with models: prompts, tasks, archives, other programs' models.

use std::fs;

use crate::{Program, json, prose, stdout};

/// A run of the tiny model on prose.
fn trained() -> Program {
    let program = Program::new();
    program.write("a.txt", prose());
    json(&program.tiny(&["train", "--data", "a.txt", "--out", "run", "--json"]));
    program
}

const GREEDY: [&str; 7] = ["generate", "run", "--temperature", "0", "--max-tokens", "40", "--json"];

#[test]
fn tasks_are_evaluated() {
    let program = trained();
    let evaluated = json(&program.run(&["eval", "run", "--data", "a.txt", "--json"]));
    // One text: as without tasks, but that nothing ends it. A question the text answers, and one that a longer
    // choice loses by its length alone.
    let choice = |question: &str, choices: [&str; 2], answer: serde_json::Value| {
        serde_json::json!({"question": question, "choices": choices, "answer": answer}).to_string() + "\n"
    };
    let text = serde_json::json!({"text": prose(), "source": "here"}).to_string() + "\n\n";
    program.write(
        "t.jsonl",
        text.clone() + &choice("the cat", ["sat on a mat.", "zzqqxx##"], "zzqqxx##".into()),
    );
    let tasks = json(&program.run(&["eval", "run", "--tasks", "t.jsonl", "--json"]));
    let texts = &tasks["texts"];
    assert_eq!((texts["texts"].as_u64(), texts["bytes"].as_u64()), (Some(1), Some(prose().len() as u64)));
    assert_eq!(tasks["choices"]["questions"], 1);
    let bits = texts["bits_per_byte"].as_f64().unwrap() / evaluated["bits_per_byte"].as_f64().unwrap();
    assert!((bits - 1.0).abs() < 0.02, "{tasks} beside {evaluated}");
    program.write("bad.jsonl", text + &choice("the cat", ["a", "b"], 2.into()));
    program.fails(
        &["eval", "run", "--tasks", "bad.jsonl"],
        2,
        &["bad.jsonl:3", "the number of a choice", "found 2"],
    );
    program.fails(&["eval", "run", "--tasks", "no.jsonl"], 2, &["cannot find no.jsonl"]);
    program.fails(
        &["eval", "run", "--data", "a.txt", "--context", "33"],
        2,
        &["--context 33", "the model's context"],
    );
}

#[test]
fn prompts_are_continued_stopped_and_put_as_questions() {
    let program = trained();
    let greedy = GREEDY;
    // Until the first space, which is not shown.
    let whole = json(&program.run(&greedy))["text"].as_str().unwrap().to_owned();
    let stopped = json(&program.run(&[&greedy[..], &["--stop", " "]].concat()));
    assert_eq!(stopped["text"], whole.split(' ').next().unwrap());
    let prompts = ["--prompt", "the cat", "--prompt", "", "--prompt", "It"];
    let together = json(&program.run(&[&greedy[..], &prompts].concat()));
    let alone =
        |prompt: &str| json(&program.run(&[&greedy[..], &["--prompt", prompt]].concat()))["text"].clone();
    for (sequence, prompt) in together["sequences"].as_array().unwrap().iter().zip(["the cat", "", "It"]) {
        assert_eq!(sequence["text"], alone(prompt), "{prompt:?}");
    }
    program.fails(&["generate", "run", "--chat"], 2, &["chat template", "tokenizer_config.json"]);
    program.fails(&["generate", "run", "--min-p", "2"], 2, &["--min-p 2", "from 0 to 1"]);
    let template = "{{ eos_token }}{{ messages[-1].content }}{% if add_generation_prompt %}{% endif %}";
    let template = serde_json::json!({"chat_template": template, "eos_token": "<|endoftext|>"});
    program.write("run/tokenizer_config.json", template.to_string());
    let chat = [&greedy[..], &["--chat", "--prompt", "the cat"]].concat();
    assert_eq!(json(&program.run(&chat))["text"], alone("the cat"));
}

#[test]
fn archives_are_models() {
    let program = trained();
    let evaluated = json(&program.run(&["eval", "run", "--data", "a.txt", "--json"]));
    let greedy =
        |model| json(&program.run(&["generate", model, "--temperature", "0", "--json"]))["text"].clone();
    // From an archive, in a folder of its own, a model says the same.
    fs::create_dir(program.path().join("kept")).unwrap();
    let archive = ["archive", "run", "--out", "kept/model.safetensors", "--json"];
    let archived = json(&program.run(&archive));
    let bits = archived["largest_bits_per_weight"].as_f64().unwrap();
    assert!(bits > 1.0 && bits <= 1.59, "{archived}");
    assert_eq!(greedy("kept"), greedy("run"));
    let again = json(&program.run(&["eval", "kept", "--data", "a.txt", "--json"]));
    assert_eq!((&again["loss"], &again["tokens"]), (&evaluated["loss"], &evaluated["tokens"]));
    program.fails(&archive, 2, &["something lies there"]);
}

/// What `export` writes, `import` reads; the model goes on with another text, and its tokenizer with it.
#[test]
fn models_go_out_come_back_and_go_on() {
    let program = trained();
    let exported = program.run(&["export", "run", "--to", "gguf", "--type", "f32", "--out", "m.gguf"]);
    assert!(exported.status.success(), "{}", crate::stderr(&exported));
    let imported = json(&program.run(&["import", "m.gguf", "--out", "back", "--json"]));
    assert_eq!(
        (&imported["model"]["precision"], &imported["model"]["dim"]),
        (&"ternary".into(), &256.into())
    );
    let text =
        |model| json(&program.run(&["generate", model, "--temperature", "0", "--json"]))["text"].clone();
    // Embedding and gains are f32 there, matrices codes times their scale.
    assert_eq!(text("back"), text("run"));
    program.fails(&["import", "a.txt", "--out", "no"], 4, &["magic", "GGUF"]);
    program.fails(&["import", "nowhere", "--out", "no"], 2, &["cannot import nowhere"]);
    let on = [
        "train",
        "--from",
        "back",
        "--data",
        "a.txt",
        "--out",
        "on",
        "--set",
        "run.steps=2",
        "--set",
        "run.batch=2",
    ];
    let on = [&on[..], &["--set", "run.eval_tokens=128", "--set", "run.teach=0.5", "--json"]].concat();
    let (on, before) =
        (json(&program.run(&on)), json(&program.run(&["eval", "run", "--data", "a.txt", "--json"])));
    let (on, before) = (on["loss"].as_f64().unwrap(), before["loss"].as_f64().unwrap());
    assert!(on < before + 0.5, "{on} after {before}");
    assert!(stdout(&program.run(&["inspect", "on", "--json"])).contains("qkv"));
}

/// A line of a conversation: a question about an animal, and its colour.
fn conversation(n: usize) -> String {
    let animals = ["cat", "dog", "cow", "fox", "hen", "owl"];
    let colours = ["red", "grey", "black", "white", "brown", "green"];
    let many = ["Please say,", "Now,", "So", "Tell me,", "Well,", "And"][n / 6 % 6];
    let question = format!("{many} which colour has the {} of house {n}?", animals[n % 6]);
    let answer = format!("It is {}.", colours[n % 6]);
    let messages = [("user", &question), ("assistant", &answer)]
        .map(|(role, content)| serde_json::json!({"role": role, "content": content}));
    serde_json::json!({"messages": messages, "source": format!("chat {n}")}).to_string() + "\n"
}

#[test]
fn models_learn_to_answer() {
    let program = Program::new();
    program.write("a.txt", prose());
    // A tokenizer that knows the words of questions too.
    program.write("chats.jsonl", (0..180).map(conversation).collect::<String>());
    let sets = ["layers=1", "ffn=256", "context=64"].map(|set| format!("model.{set}"));
    let more =
        ["run.batch=4", "run.steps=150", "run.eval_tokens=1024", "data.validation=0.1", "data.vocab=300"];
    let sets: Vec<&str> = sets.iter().map(String::as_str).chain(more).collect();
    let train = |args: &[&str]| {
        let data = ["train", "--data", "chats.jsonl", "--json"];
        program.run(
            &data
                .iter()
                .chain(args)
                .copied()
                .chain(sets.iter().flat_map(|set| ["--set", set]))
                .collect::<Vec<_>>(),
        )
    };
    let first = train(&["--out", "chat"]);
    assert!(String::from_utf8_lossy(&first.stderr).contains("nats per token of answers"), "{first:?}");
    let loss = json(&first)["loss"].as_f64().unwrap();
    assert!(loss < 1.0, "{loss}");
    let evaluated = json(&program.run(&["eval", "chat", "--data", "chats.jsonl", "--json"]));
    assert_eq!(evaluated["answers"], true);
    // Two words and the token that ends the turn, of some seven in a conversation.
    let tokens = evaluated["tokens"].as_u64().unwrap();
    assert!(tokens > 3 * 180 && tokens < 12 * 180, "{tokens}");
    let text = json(&program.run(&["eval", "chat", "--data", "a.txt", "--json"]));
    assert_eq!(text["answers"], serde_json::Value::Null);
    let audited = program.run(&["audit", "chat"]);
    assert!(audited.status.success(), "{}", stdout(&audited));
    // Its answers end, and have the form of those it learnt.
    let prompt = "Well, which colour has the cow of house 7?";
    let asked = [
        "generate",
        "chat",
        "--chat",
        "--temperature",
        "0",
        "--max-tokens",
        "40",
        "--json",
        "--prompt",
        prompt,
    ];
    let answer = json(&program.run(&asked))["text"].as_str().unwrap().trim().to_owned();
    assert!(answer.starts_with("It is ") && answer.ends_with('.'), "{answer}");
    // It goes on with other conversations, in the same template.
    let on = train(&["--from", "chat", "--out", "on"]);
    let again = json(&on)["loss"].as_f64().unwrap();
    assert!(again < loss + 0.1, "{loss}, and from there {again}");
    let of = |run: &str| fs::read(program.path().join(run).join("chat_template.jinja")).unwrap();
    assert_eq!(of("on"), of("chat"));
    program.write("bad.jsonl", r#"{"messages": [{"role": "user", "content": "alone"}]}"#);
    program.fails(
        &["train", "--data", "bad.jsonl", "--out", "bad"],
        2,
        &["bad.jsonl:1", "a last turn of the assistant", "one of the user"],
    );
}
