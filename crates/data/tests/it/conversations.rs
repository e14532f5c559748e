//! Conversations to learn from: lines, tokens and their marks, shards, batches and what is measured.

use std::path::Path;

use tritrain_data::{
    BatchPlan, Corpus, DataConfig, Document, Error, PlanKind, PlanOptions, Preparation, Source, Split,
    Tokenizer, ValidationSet,
    chat::{ChatTemplate, Message, TEMPLATE},
};
use tritrain_files::{Disk, tokens::NO_TARGET_MARK};
use tritrain_trit::NO_TARGET;

use crate::chats::{CHATML, STRICT, by_hand, new, tokenizer};
use crate::common::{failure, folder, memory, prepare, prose, put, read, small};

/// Turns of user and assistant, the user first.
fn turns(said: &[&str]) -> Vec<Message> {
    let roles = ["user", "assistant"].into_iter().cycle();
    roles.zip(said).map(|(role, said)| Message::new(role, *said)).collect()
}

/// Tokens of parts, where those of parts with `true` are learnt.
fn marked(tokenizer: &Tokenizer, parts: &[(&[&str], bool)]) -> Vec<u32> {
    let mark = |learnt: bool| if learnt { 0 } else { NO_TARGET_MARK };
    let of = |(part, learnt): &(&[&str], bool)| {
        by_hand(tokenizer, part).into_iter().map(|token| token | mark(*learnt)).collect::<Vec<_>>()
    };
    parts.iter().flat_map(of).collect()
}

#[test]
fn answers_are_learnt_up_to_the_token_that_ends_them() {
    let (tokenizer, template) = (tokenizer(), new(CHATML, "", "<|im_end|>"));
    let (start, end) = ("<|im_start|>", "<|im_end|>");
    let found =
        template.conversation(&tokenizer, &turns(&["the river?", "a light", "winter?", "42 <|im_end|>"]));
    let expected = marked(
        &tokenizer,
        &[
            (&[start, "system\nBe brief.", end, "\n", start, "user\nthe river?", end, "\n"], false),
            (&[start, "assistant\n"], false),
            (&["a light", end], true),
            (&["\n", start, "user\nwinter?", end, "\n", start, "assistant\n"], false),
        ],
    );
    let found = found.unwrap();
    assert_eq!(found[..expected.len()], expected);
    // What an answer spells is text: its end is the template's.
    let mut last = tokenizer.encode("42 <|im_end|>").unwrap();
    last.extend(by_hand(&tokenizer, &[end]));
    last.extend(marked(&tokenizer, &[(&["\n"], false)]));
    assert_eq!(found[expected.len()..], last);
    // As in generation: what is before an answer is its prompt, token by token.
    let prompt = template.prompt(&tokenizer, &turns(&["the river?"])).unwrap();
    assert!(prompt.iter().zip(&found).all(|(token, marked)| token | NO_TARGET_MARK == *marked));

    // A template that has no header, trims, and ends answers with the end of text.
    let strict = new(STRICT, start, "<|endoftext|>");
    let expected = marked(
        &tokenizer,
        &[(&[start, "\n[INST] a house [/INST]"], false), (&[" reads", "<|endoftext|>"], true)],
    );
    assert_eq!(strict.conversation(&tokenizer, &turns(&["a house ", "reads\n"])).unwrap(), expected);
}

#[test]
fn a_tokenizer_without_a_template_has_a_plain_one() {
    let base = Tokenizer::train(&[prose(1, 200)], 400).unwrap();
    for (tokenizer, end) in [(base, "<|endoftext|>"), (tokenizer(), "<|im_end|>")] {
        let template = ChatTemplate::plain(&tokenizer).unwrap();
        let start = "<|im_start|>";
        let parts: &[(&[&str], bool)] = match end {
            "<|im_end|>" => &[
                (&[start, "user\nthe river?", "<|im_end|>", "\n", start, "assistant\n"], false),
                (&["a light", "<|im_end|>"], true),
                (&["\n"], false),
            ],
            _ => &[
                (&["<|im_start|>user\nthe river?", "<|endoftext|>", "\n<|im_start|>assistant\n"], false),
                (&["a light", "<|endoftext|>"], true),
                (&["\n"], false),
            ],
        };
        let found = template.conversation(&tokenizer, &turns(&["the river?", "a light"])).unwrap();
        assert_eq!(found, marked(&tokenizer, parts));
        // Saved and read again it is the same.
        let dir = folder();
        template.save(&Disk, dir.path()).unwrap();
        let again = ChatTemplate::find(&Disk, &dir.path().join("tokenizer.json")).unwrap().unwrap();
        assert_eq!((again.hash(), again.ends(&tokenizer)), (template.hash(), template.ends(&tokenizer)));
        assert_eq!(again.conversation(&tokenizer, &turns(&["the river?", "a light"])).unwrap(), found);
    }
}

#[test]
fn templates_that_change_what_was_said_are_refused() {
    let tokenizer = tokenizer();
    let refused = |template: &str, what: &str| {
        let said = turns(&["a", "b", "c", "d"]);
        let error = new(template, "", "").conversation(&tokenizer, &said).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("beside the tokenizer"), "{error}");
    };
    // Only the last answer stays; only the number of turns matters; no answer is written.
    let last =
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}";
    refused(last, "turn 2 changed by what follows");
    refused("{{ messages | length }} {{ messages[0].content }}", "every turn behind the ones before");
    refused(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "nothing for turn 2",
    );
    refused("{{ raise_exception('only cats') }}", "only cats");
}

fn line(messages: &[(&str, &str)]) -> String {
    let said = |(role, content): &(&str, &str)| serde_json::json!({ "role": role, "content": content });
    serde_json::json!({ "messages": messages.iter().map(said).collect::<Vec<_>>() }).to_string()
}

#[test]
fn lines_are_conversations_where_they_have_messages() {
    let dir = folder();
    let system = line(&[("system", "S"), ("user", "u"), ("assistant", "a")]);
    let both = r#"{"text": "t", "messages": [{"role": "user", "content": "x", "name": "n"}, {"role": "assistant", "content": "y"}]}"#;
    let text = r#"{"text": "only text", "messages": 3}"#;
    let path = put(dir.path(), "a.jsonl", [&system, both, text].map(|line| format!("{line}\n")).concat());
    let found = read(&path);
    let document = |name: &str, text: &str, messages: Vec<Message>| Document {
        domain: "a".into(),
        name: name.into(),
        text: text.into(),
        messages,
    };
    let three = [&[Message::new("system", "S")][..], &turns(&["u", "a"])].concat();
    let expected = [
        document("a.jsonl:1", "S\n\nu\n\na", three),
        document("a.jsonl:2", "x\n\ny", turns(&["x", "y"])),
        document("a.jsonl:3", "only text", Vec::new()),
    ];
    assert_eq!(found, expected);
}

#[test]
fn bad_conversations_are_errors_with_their_place() {
    let dir = folder();
    let ok = ("user", "u");
    for (bad, expected) in [
        (line(&[]), "expected turns, found none"),
        (line(&[ok]), "expected a last turn of the assistant, found one of the user"),
        (line(&[("system", "s")]), "expected a last turn of the assistant, found one of the system"),
        (line(&[("assistant", "a")]), "found assistant for user in turn 1"),
        (line(&[ok, ok, ("assistant", "a")]), "found user for assistant in turn 2"),
        (line(&[ok, ("assistant", "a"), ("assistant", "b")]), "found assistant for user in turn 3"),
        (
            line(&[ok, ("tool", "a")]),
            "expected the roles system, user and assistant, found \"tool\" in turn 2",
        ),
        (line(&[("system", "s"), ("system", "s")]), "found system for user in turn 2"),
        (
            line(&[ok, ("assistant", " \n")]),
            "expected answers that are not empty, found an empty one in turn 2",
        ),
        (r#"{"messages": [{"role": "user"}]}"#.into(), "found missing field `content`"),
        (r#"{"messages": [{"role": "user", "content": null}]}"#.into(), "found invalid type: null"),
        (r#"{"messages": "hello"}"#.into(), "found invalid type: string"),
        (
            r#"{"prompt": "hello"}"#.into(),
            "expected a field \"text\" or \"messages\", found the fields [prompt]",
        ),
    ] {
        let good = line(&[ok, ("assistant", "a")]);
        let text = failure(&put(dir.path(), "a.jsonl", format!("{good}\n{bad}\n")));
        assert!(text.starts_with("a.jsonl:2: expected ") && text.contains(expected), "{text}");
        assert!(text.ends_with("repair or remove the line)"), "{text}");
    }
}

/// Sixty conversations of one or two answers, ten texts, and the words of which is which.
fn chats() -> Source {
    let (mut documents, Source::Memory { documents: texts, .. }) =
        (Vec::new(), memory(&(0..10).map(|n| ("text", "t", prose(n, 6))).collect::<Vec<_>>()))
    else {
        unreachable!()
    };
    for n in 0..60 {
        let words = prose(n, 4);
        let mut said: Vec<&str> = words.trim().split('\n').filter(|line| !line.is_empty()).collect();
        said.truncate(if n % 3 == 0 { 4 } else { 2 });
        let messages = turns(&said);
        documents.push(Document {
            domain: "chat".into(),
            name: format!("c{n}"),
            text: said.join("\n\n"),
            messages,
        });
    }
    documents.extend(texts);
    Source::Memory { name: "chats".into(), documents }
}

fn with_tokenizer(dir: &Path, template: &str) -> DataConfig {
    let path = put(dir, "given/tokenizer.json", tokenizer().json());
    put(dir, &format!("given/{TEMPLATE}"), template);
    put(dir, "given/tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#);
    DataConfig { tokenizer: path.display().to_string(), ..small() }
}

fn prepare_for(source: &Source, config: &DataConfig, context: usize, dir: &Path) -> Result<Corpus, Error> {
    Preparation::start(&Disk, source, (config, context), dir)?.finish()
}

/// Tokens of a split with their marks.
fn all(corpus: &Corpus, split: Split) -> Vec<u32> {
    let mut tokens = vec![0; corpus.len(split) as usize];
    corpus.tokens().read_marked(split, 0, &mut tokens).unwrap();
    tokens
}

#[test]
fn conversations_and_texts_share_shards_and_batches() {
    let dir = folder();
    let config = with_tokenizer(dir.path(), CHATML);
    let corpus = prepare_for(&chats(), &config, 1000, dir.path()).unwrap();
    assert!(corpus.tokens().is_marked());
    let template = ChatTemplate::find(&Disk, &dir.path().join("tokenizer.json")).unwrap().unwrap();
    assert_eq!(template.hash(), new(CHATML, "", "<|im_end|>").hash(), "beside the run's tokenizer");
    let Source::Memory { documents, .. } = chats() else { unreachable!() };
    for split in [Split::Train, Split::Validation] {
        let tokens = all(&corpus, split);
        for found in corpus.tokens().documents(split).map(Result::unwrap) {
            let of = &tokens[found.start as usize..(found.start + found.tokens) as usize];
            let (last, of) = of.split_last().unwrap();
            let names = &corpus.tokens().manifest().domains;
            let candidates =
                documents.iter().filter(|d| d.name == found.name && d.domain == names[found.domain]);
            let expected = |document: &Document| match document.messages.is_empty() {
                true => corpus.tokenizer().encode(&document.text).unwrap(),
                false => template.conversation(corpus.tokenizer(), &document.messages).unwrap(),
            };
            let document =
                candidates.into_iter().find(|document| expected(document) == of).expect("one of them");
            let is_text = document.messages.is_empty();
            assert_eq!(*last < NO_TARGET_MARK, is_text, "the end of a conversation is not learnt twice");
            let answers = document.messages.iter().filter(|message| message.role == "assistant");
            let bytes = answers.map(|message| message.content.len() as u64).sum();
            assert_eq!(found.bytes, if is_text { document.text.len() as u64 } else { bytes });
        }
    }
    let options =
        PlanOptions { kind: PlanKind::Shuffle, seed: 3, batch: 2, context: 16, repeat: 1, only: None };
    let mut plan = BatchPlan::new(&corpus, &options).unwrap();
    let tokens = all(&corpus, Split::Train);
    let (mut inputs, mut targets, mut learnt) = (vec![0; 32], vec![0; 32], 0);
    for step in 0..20 {
        let windows = plan.windows_of(step, None).unwrap();
        plan.read(&corpus, &windows, &mut inputs, &mut targets).unwrap();
        for (window, (inputs, targets)) in
            windows.iter().zip(inputs.chunks_exact(16).zip(targets.chunks_exact(16)))
        {
            for at in 0..16 {
                let [now, next] =
                    [0, 1].map(|ahead| tokens[plan.tokens_of(*window)[0].0 as usize + at + ahead]);
                assert_eq!(inputs[at], now & !NO_TARGET_MARK);
                let expected = if next < NO_TARGET_MARK { next } else { NO_TARGET };
                assert_eq!(targets[at], expected);
                learnt += u32::from(targets[at] != NO_TARGET);
            }
        }
    }
    assert!(learnt > 100 && learnt < 600, "{learnt} of 640");
}

#[test]
fn only_answers_are_measured() {
    let dir = folder();
    let corpus = prepare_for(&chats(), &with_tokenizer(dir.path(), CHATML), 1000, dir.path()).unwrap();
    let set = ValidationSet::new(&corpus, 8, 1 << 20).unwrap();
    let every = (corpus.len(Split::Validation) - 1) / 8;
    assert!((set.len() as u64) < every, "windows of questions alone are left out: {} of {every}", set.len());
    let (mut inputs, mut targets) = ([0; 8], [0; 8]);
    for window in 0..set.len() {
        set.read(&corpus, window, &mut inputs, &mut targets).unwrap();
        assert!(
            targets.iter().any(|target| *target != NO_TARGET) && inputs.iter().all(|token| *token < 1000)
        );
    }
    for domain in set.domains() {
        let names = &corpus.tokens().manifest().domains;
        let (tokens, mut bytes, mut targets) = (all(&corpus, Split::Validation), 0, 0);
        for document in corpus.tokens().documents(Split::Validation).map(Result::unwrap) {
            if names[document.domain] == domain.name {
                let of = &tokens[document.start as usize..(document.start + document.tokens) as usize];
                let learnt = of.iter().filter(|token| **token < NO_TARGET_MARK);
                targets += learnt.clone().count() as u64;
                bytes += learnt.map(|token| corpus.tokenizer().bytes_of(*token).len() as u64).sum::<u64>();
            }
        }
        assert_eq!((domain.targets, domain.bytes), (targets, bytes), "{}", domain.name);
        assert_eq!(domain.targets == domain.tokens, domain.name == "text", "{}", domain.name);
        assert_eq!(domain.bytes_per_token(), bytes as f64 / targets as f64);
    }
}

#[test]
fn long_conversations_are_cut_and_those_without_an_answer_left_out() {
    let dir = folder();
    let config = with_tokenizer(dir.path(), CHATML);
    let whole = prepare_for(&chats(), &config, 1000, dir.path()).unwrap();
    let count = |corpus: &Corpus| {
        let manifest = corpus.tokens().manifest();
        manifest.train.documents + manifest.validation.documents
    };
    assert_eq!(count(&whole), 70);
    // A context in which most first answers begin, and few second ones.
    let cut = prepare_for(&chats(), &config, 48, dir.path()).unwrap();
    assert!(count(&cut) < 70 && count(&cut) > 20, "{}", count(&cut));
    let template = new(CHATML, "", "<|im_end|>");
    let Source::Memory { documents, .. } = chats() else { unreachable!() };
    let mut shorter = 0;
    for split in [Split::Train, Split::Validation] {
        let tokens = all(&cut, split);
        for found in
            cut.tokens().documents(split).map(Result::unwrap).filter(|found| found.name.starts_with('c'))
        {
            let document = documents.iter().find(|document| document.name == found.name).unwrap();
            let expected = template.conversation(cut.tokenizer(), &document.messages).unwrap();
            let of = &tokens[found.start as usize..(found.start + found.tokens) as usize];
            assert!(of.iter().any(|token| *token < NO_TARGET_MARK), "{} has an answer", found.name);
            if expected.len() > 48 {
                shorter += 1;
                assert_eq!(of.len(), 49);
                assert_eq!(of[..47], expected[..47]);
                // Neither that nor the end of text behind it is where the conversation ends.
                assert!(of[47..].iter().all(|token| *token >= NO_TARGET_MARK));
            } else {
                assert_eq!(of[..expected.len()], expected);
            }
        }
    }
    assert!(shorter > 5, "{shorter}");
    let error =
        ValidationSet::new(&prepare_for(&chats(), &config, 1000, dir.path()).unwrap(), 0, 1).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }));
}

#[test]
fn the_template_and_the_context_belong_to_the_data() {
    let dir = folder();
    let config = with_tokenizer(dir.path(), CHATML);
    let first = prepare_for(&chats(), &config, 64, dir.path()).unwrap().hash().to_owned();
    let source = chats();
    let resume = |context: usize| Preparation::resume(&Disk, &source, (&config, context), dir.path());
    assert_eq!(resume(64).unwrap().finish().unwrap().hash(), first);
    let changed = |context: usize, what: &str| {
        let error = resume(context).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains(what), "{error}");
    };
    changed(65, "cut at 65");
    put(dir.path(), &format!("given/{TEMPLATE}"), CHATML.replace("brief", "long"));
    changed(64, "chat template");
    let other = prepare_for(&chats(), &config, 64, dir.path()).unwrap();
    assert_ne!(other.hash(), first, "made anew");
    let beside = ChatTemplate::find(&Disk, &dir.path().join("tokenizer.json")).unwrap().unwrap();
    assert_eq!(beside.hash(), new(&CHATML.replace("brief", "long"), "", "<|im_end|>").hash());
    // Text has neither, and needs no template that can be used.
    put(dir.path(), &format!("given/{TEMPLATE}"), "{% if %}");
    let error = prepare_for(&chats(), &config, 64, &dir.path().join("chats")).unwrap_err();
    assert!(error.to_string().contains("a Jinja template"), "{error}");
    let text = memory(&(0..30).map(|n| ("text", "t", prose(n, 6))).collect::<Vec<_>>());
    let plain = prepare_for(&text, &config, 64, &dir.path().join("text")).unwrap();
    assert!(!plain.tokens().is_marked() && !dir.path().join("text").join(TEMPLATE).exists());
    Preparation::resume(&Disk, &text, (&config, 65), &dir.path().join("text")).unwrap();
}

#[test]
fn a_template_that_refuses_most_conversations_is_an_error() {
    let dir = folder();
    // Of twenty at most one may be refused.
    let not = |sentence: &str| {
        format!(
            "{{% if '{sentence}' in messages[0].content %}}{{{{ raise_exception('no') }}}}{{% endif %}}{CHATML}"
        )
    };
    let Source::Memory { documents, .. } = chats() else { unreachable!() };
    let one = documents[5].messages[0].content.clone();
    let config = with_tokenizer(dir.path(), &not(&one));
    let corpus = prepare(&chats(), &config, dir.path()).unwrap();
    let manifest = corpus.tokens().manifest();
    assert!(manifest.train.documents + manifest.validation.documents < 70);
    let config = with_tokenizer(dir.path(), &not(" "));
    let error = prepare(&chats(), &config, dir.path()).unwrap_err();
    assert!(error.to_string().contains("no") && error.to_string().contains(", for c0"), "{error}");
    assert_eq!(error.exit_code(), 2);
}
