//! The configuration: messages, order of layers, round trips.

use proptest::prelude::*;
use tritrain_optim::{
    ControllerKind, DigitsKind, DirectionKind, GradientKind, OptimConfig, ScheduleKind, StorageKind,
};
use tritrain_train::{Config, FREE, Kind, RunConfig};

/// The message of a file that must be refused.
fn refused(text: &str) -> String {
    match Config::parse(text, "run.toml") {
        Ok(_) => String::from("accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn options_without_effect_are_refused() {
    let error = Config::resolve(None, &["optim.direction=adamw", "optim.moment=trits2"]).unwrap_err();
    assert!(error.to_string().contains("optim.moment has no effect on AdamW"), "{error}");
    assert!(Config::resolve(None, &["optim.moment=trits2"]).is_ok());
    assert!(Config::resolve(None, &["optim.direction=muon", "optim.moment=int8"]).is_ok());
    let error = Config::resolve(None, &["optim.controller_weights=w.json"]).unwrap_err();
    assert!(error.to_string().contains("is for the learned controller"), "{error}");
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let cases: [(&[&str], &str); 14] = [
        (&["optim.feedback=8", "optim.radius=0.1"], "optim.feedback moves the radius of a controller"),
        (&["optim.feedback=8", "optim.controller=rule"], "optim.feedback moves the radius of a controller"),
        (&["run.batch=6", "run.micro_batch=4"], "expected a divisor of run.batch = 6, or 0"),
        (&["run.batch=6", "run.micro_batch=8"], "expected a divisor of run.batch = 6, or 0"),
        (
            &["run.batch=8", "run.micro_batch=4", "optim.gradient=none"],
            "gradients of 2 passes need a place to add up",
        ),
        (
            &["run.batch=122", "run.micro_batch=1", "optim.gradient=trits"],
            "optim.gradient = \"trits\" adds up at most 121",
        ),
        (&["optim.schedule=free", "optim.direction=muon"], "is for optim.direction"),
        (&["optim.schedule=free", "optim.latent=int8"], "optim.latent is to be \"f32\""),
        (&["optim.direction=prodigy", "optim.latent=trits3"], "optim.latent is to be \"f32\""),
        (&["optim.direction=prodigy", "optim.radius=0.1"], "has no trust region"),
        (&["optim.digits=clusters", "optim.latent=trits3"], "optim.clusters to 2 or more"),
        (&["optim.digits=clusters", "optim.clusters=4"], "set optim.latent to \"trits3\" or \"trits4\""),
        (
            &["optim.digits=clusters", "optim.clusters=4", "optim.latent=trits5"],
            "optim.digits \"clusters\" gives",
        ),
        (
            &["optim.digits=clusters", "optim.clusters=4", "optim.latent=int8"],
            "optim.digits \"clusters\" gives",
        ),
    ];
    for (sets, expected) in cases {
        let error = Config::resolve(None, sets).unwrap_err().to_string();
        assert!(error.contains(expected), "{sets:?}: {error}");
    }
    let sound: [&[&str]; 6] = [
        &["run.batch=8", "run.micro_batch=8", "optim.gradient=none"],
        &["run.batch=121", "run.micro_batch=1", "optim.gradient=trits"],
        &["optim.schedule=free", "optim.direction=adamw"],
        &["optim.direction=prodigy", "optim.rate=1"],
        &["optim.digits=clusters", "optim.clusters=2", "optim.latent=trits3"],
        &["optim.digits=clusters", "optim.clusters=32", "optim.latent=trits4"],
    ];
    for sets in sound {
        assert!(Config::resolve(None, sets).is_ok(), "{sets:?}");
    }
}

#[test]
fn bad_files_say_what_is_wrong_and_where() {
    let cases = [
        ("[run]\ndim = 4", "run.toml:2: run.dim: no such option; did you mean model.dim?"),
        ("[model]\n\n# x\nlayer = 4", "run.toml:4: model.layer: no such option; did you mean model.layers?"),
        ("model.n_heads = 4", "run.toml:1: model.n_heads: no such option; did you mean model.heads?"),
        (
            "[model]\nweight_deacy = 0",
            "run.toml:2: model.weight_deacy: no such option; did you mean optim.weight_decay?",
        ),
        (
            "[optim]\nzzz = 4",
            "run.toml:2: optim.zzz: no such option; [optim] has direction, rate, rate_f32, embedding_rate, latent, range, gradient, moment, \
             radius, clusters, digits, controller, feedback, controller_weights, momentum, beta1, beta2, weight_decay, spike, spike_z, schedule, warmup, decay, final_rate",
        ),
        ("[modle]\ndim = 4", "run.toml:1: [modle]: no such section; did you mean [model]?"),
        ("[zzz]", "run.toml:1: [zzz]: no such section; the sections are model, data, optim, run"),
        ("dim = 4", "run.toml:1: dim: no such option outside the sections; did you mean model.dim?"),
        ("model = 4", "run.toml:1: model: expected a section, [model]"),
        ("[model]\ndim = 1", "run.toml:2: model.dim = 1: expected an integer from 2 to 65_536 (default 256)"),
        (
            "[model]\ndim = -256",
            "run.toml:2: model.dim = -256: expected an integer from 2 to 65_536 (default 256)",
        ),
        (
            "[model]\ndim = 256.0",
            "run.toml:2: model.dim = 256.0: expected an integer from 2 to 65_536 (default 256)",
        ),
        (
            "[model]\ndim = \"256\"",
            "run.toml:2: model.dim = \"256\": expected an integer from 2 to 65_536 (default 256)",
        ),
        (
            "[model.dim]\nx = 1",
            "run.toml:1: model.dim = a table: expected an integer from 2 to 65_536 (default 256)",
        ),
        ("[model]\ntied = 1", "run.toml:2: model.tied = 1: expected true or false (default true)"),
        (
            "[model]\ngate = \"relu\"",
            "run.toml:2: model.gate = \"relu\": expected \"silu\" or \"relu2\" (default \"silu\"); did you mean \"relu2\"?",
        ),
        (
            "[model]\ngate = 3",
            "run.toml:2: model.gate = 3: expected \"silu\" or \"relu2\" (default \"silu\")",
        ),
        (
            "[optim]\nrate = 1.5",
            "run.toml:2: optim.rate = 1.5: expected a number from 0.0 to 1.0 (default 0.019)",
        ),
        (
            "[optim]\nrate = nan",
            "run.toml:2: optim.rate = nan: expected a number from 0.0 to 1.0 (default 0.019)",
        ),
        (
            "[optim]\nrate = -inf",
            "run.toml:2: optim.rate = -inf: expected a number from 0.0 to 1.0 (default 0.019)",
        ),
        (
            "[optim]\nrate = 1979-05-27",
            "run.toml:2: optim.rate = 1979-05-27: expected a number from 0.0 to 1.0 (default 0.019)",
        ),
        (
            "[model]\nnorm_eps = 0",
            "run.toml:2: model.norm_eps = 0: expected a number from 1e-12 to 0.1 (default 1e-5)",
        ),
        ("[run]\nseed = -1", "run.toml:2: run.seed = -1: expected an integer from 0 up (default 1)"),
        (
            "[run]\nseed = 18446744073709551616",
            "run.toml:2: run.seed = 18446744073709551616: expected an integer from 0 up (default 1)",
        ),
        (
            "[run]\ntokens = [1,\n 2]",
            "run.toml:2: run.tokens = [1, 2]: expected an integer from 0 to 1_000_000_000_000_000 (default 800_000)",
        ),
        (
            "[model]\nheads = 5",
            "run.toml:2: model.heads = 5: must divide model.dim = 256 into even head widths",
        ),
        (
            "[model]\ndim = 300\nheads = 4",
            "run.toml:3: model.heads = 4: must divide model.dim = 300 into even head widths",
        ),
        (
            "[model]\ndim = 1024\nheads = 6",
            "run.toml:3: model.heads = 6: must divide model.dim = 1024 into even head widths",
        ),
        (
            "[model]\nheads = 2",
            "run.toml: model.kv_heads = 4: must divide model.heads = 2; model.kv_heads has its default",
        ),
        (
            "[model]\nprecision = \"f32\"\n[run]\nlambda_warmup = 0.5",
            "run.toml:4: run.lambda_warmup = 0.5: it is for ternary matrices that are trained: leave it 0 \
             with model.precision = \"f32\" and with adapters",
        ),
        (
            "[run]\nrelations = 2.0",
            "run.toml:2: run.relations = 2: they are those of the model in run.from, and no part of what \
             optim.feedback compares",
        ),
        ("[run]\nteach = 0.5", "run.toml:2: run.teach = 0.5: nobody teaches without run.from"),
        (
            "[data]\nclusters_k = 3\n[run]\nexperts = 4",
            "run.toml:4: run.experts = 4: data.clusters_k = 3 must be the same, or 0",
        ),
        (
            "[run]\ntokens = 0",
            "run.toml:2: run.steps = 0 and run.tokens = 0: nothing ends the run; set one of them",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refused(text), expected, "{text}");
    }
}

#[test]
fn every_problem_is_told_in_the_order_of_the_file() {
    let text = "[run]\nbatch = 0\n[optim]\nrate = 2.0\nspeed = 1\n[model]\ndim = 1\n[mode]\n";
    let expected = "\
run.toml:2: run.batch = 0: expected an integer from 1 to 65_536 (default 4)
run.toml:4: optim.rate = 2.0: expected a number from 0.0 to 1.0 (default 0.019)
run.toml:5: optim.speed: no such option; did you mean run.seed?
run.toml:7: model.dim = 1: expected an integer from 2 to 65_536 (default 256)
run.toml:8: [mode]: no such section; did you mean [model]?
--set: run.batch = x: expected an integer from 1 to 65_536 (default 4)";
    let error = Config::resolve(Some((text, "run.toml")), &["run.batch=x"]).unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.problems.len(), 6);
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn broken_toml_is_told_by_line() {
    for (text, line) in
        [("[model]\ndim = \n", 2), ("[model]\ndim = 2\ndim = 3", 3), ("[model\n", 1), ("\n\n=", 3)]
    {
        let message = refused(text);
        assert!(message.starts_with(&format!("run.toml:{line}: not TOML: ")), "{text:?}: {message}");
    }
    let deep = format!("[model]\ndim = {}", "[".repeat(100_000));
    assert!(refused(&deep).contains("not TOML"));
}

#[test]
fn long_values_are_cut() {
    let message = refused(&format!("[model]\ndim = \"{}\"", "ä".repeat(500)));
    assert!(message.len() < 250, "{message}");
    assert!(message.contains("..: expected an integer"), "{message}");
}

#[test]
fn arguments_say_what_is_wrong() {
    let cases = [
        ("model.dim", "--set: model.dim: expected section.option=value"),
        ("dim=5", "--set: dim: expected section.option=value; did you mean model.dim?"),
        ("run.dim=5", "--set: run.dim: no such option; did you mean model.dim?"),
        ("modle.dim=5", "--set: modle.dim: no section [modle]; did you mean [model]?"),
        ("model.dim=big", "--set: model.dim = big: expected an integer from 2 to 65_536 (default 256)"),
        ("model.dim=", "--set: model.dim = nothing: expected an integer from 2 to 65_536 (default 256)"),
        ("model.tied=yes", "--set: model.tied = yes: expected true or false (default true)"),
        (
            "run.seed=1\nrun.keep=2",
            "--set: run.seed = 1 run.keep=2: expected an integer from 0 up (default 1)",
        ),
    ];
    for (argument, expected) in cases {
        let mut config = Config::default();
        assert_eq!(config.set(argument).unwrap_err().to_string(), expected, "{argument}");
        assert_eq!(config, Config::default(), "{argument}");
    }
}

#[test]
fn arguments_win_over_the_file_and_the_file_over_defaults() {
    let file = "[model]\ndim = 512\nlayers = 2\n[optim]\nrate = 1\n";
    let sets = [
        "model.layers=3",
        "model.gate=relu2",
        "model.precision=\"f32\"",
        "data.tokenizer=12",
        "data.paths=['a b', \"c\"]",
        "optim.beta1 = 0.5",
        "run.seed=0x10",
    ];
    let config = Config::resolve(Some((file, "run.toml")), &sets).unwrap();
    let mut expected = Config::default();
    expected.model.dim = 512;
    expected.model.layers = 3;
    expected.model.gate = tritrain_model::Gate::Relu2;
    expected.model.precision = tritrain_model::Precision::F32;
    expected.optim.rate = 1.0;
    expected.optim.beta1 = 0.5;
    expected.run.seed = 16;
    expected.data.tokenizer = "12".into();
    expected.data.paths = vec!["a b".into(), "c".into()];
    assert_eq!(config, expected);

    let mut one_by_one = Config::parse(file, "run.toml").unwrap();
    sets.iter().for_each(|set| one_by_one.set(set).unwrap());
    assert_eq!(one_by_one, expected);

    let twice = Config::resolve(None, &["run.seed=2", "run.seed=3"]).unwrap();
    assert_eq!(twice.run.seed, 3);
}

#[test]
fn options_are_checked_against_each_other_after_the_last_argument() {
    let file = Some(("[model]\nffn = 300\n", "run.toml"));
    let refused = Config::resolve(file, &[] as &[&str]).unwrap_err().to_string();
    assert!(refused.starts_with("run.toml:2: model.ffn = 300: ternary rows"), "{refused}");
    assert!(Config::resolve(file, &["model.precision=f32"]).is_ok());
    let both = Config::resolve(None, &["model.heads=8", "model.kv_heads=3"]).unwrap_err();
    assert_eq!(both.to_string(), "--set: model.kv_heads = 3: must divide model.heads = 8");

    let mut config = Config::default();
    config.set("model.heads=2").unwrap();
    assert_eq!(
        config.check().unwrap_err().to_string(),
        "configuration: model.kv_heads = 4: must divide model.heads = 2"
    );
}

#[test]
fn the_annotated_file_is_the_default_and_helps_with_every_option() {
    let text = Config::annotated();
    assert_eq!(Config::parse(&text, "annotated"), Ok(Config::default()));
    assert!(text.lines().all(|line| line.chars().count() <= 100));
    let start = "\
# The `[model]` section: one decoder-only transformer.
[model]

# Width of the residual stream; a multiple of 64 for ternary models. Range 2 to 65_536.
dim = 256
";
    assert!(text.starts_with(start), "{text}");
    assert!(
        text.contains(
            "\n# Peak learning rate of embedding and head. Range 0.0 to 1.0.\nembedding_rate = 0.008\n"
        ),
        "{text}"
    );
    let options: Vec<_> = Config::options().iter().flat_map(|section| &section.options).collect();
    assert!(options.len() <= 64, "{} options: which one goes?", options.len());
    for option in options {
        assert!(option.help.len() > 8, "{} has no help", option.key);
        if let Kind::Choice(values) = &option.kind {
            assert!(
                values.iter().all(|(_, help)| !help.is_empty()),
                "{} has a choice without help",
                option.key
            );
        }
    }
    assert!(Config::options().iter().all(|section| !section.help.is_empty()));
}

#[test]
fn steps_are_bounded_by_the_smaller_of_steps_and_tokens() {
    let steps = |sets: &[&str]| Config::resolve(None, sets).unwrap().steps().unwrap();
    let shape = ["run.batch=4", "model.context=100"];
    let with = |more: [&'static str; 2]| steps(&[&shape[..], &more[..]].concat());
    assert_eq!(with(["run.tokens=4000", "run.steps=0"]), 10);
    assert_eq!(with(["run.tokens=4399", "run.steps=0"]), 10);
    assert_eq!(with(["run.tokens=4000", "run.steps=7"]), 7);
    assert_eq!(with(["run.tokens=4000", "run.steps=11"]), 10);
    assert_eq!(with(["run.tokens=0", "run.steps=11"]), 11);
    assert_eq!(with(["run.tokens=1", "run.steps=0"]), 1);
    let mut config = Config::default();
    config.run.tokens = 0;
    assert!(config.steps().is_err() && config.check().is_err());
}

#[test]
fn identity_is_every_option_but_the_free_ones() {
    let base = Config::default();
    for option in Config::options().iter().flat_map(|section| &section.options) {
        let value = match &option.kind {
            Kind::Bool => if option.default == "true" { "false" } else { "true" }.to_owned(),
            Kind::Integer { max, .. } => max.to_string(),
            Kind::Float { min, max, .. } => ((min + max) / 2.0 * 0.9).to_string(),
            Kind::Choice(values) => values.last().unwrap().0.clone(),
            Kind::Text => "other".to_owned(),
            Kind::List => "[\"other\"]".to_owned(),
        };
        // The last choice may be the default.
        let value = match &option.kind {
            Kind::Choice(values) if option.default == format!("{value:?}") => values[0].0.clone(),
            _ => value,
        };
        let mut other = base.clone();
        other.set(&format!("{}={value}", option.key)).unwrap();
        assert_ne!(other, base, "{}", option.key);
        let found: Vec<String> = base.differences(&other).into_iter().map(|d| d.key).collect();
        if FREE.contains(&option.key.as_str()) {
            assert_eq!((found.len(), other.hash()), (0, base.hash()), "{}", option.key);
        } else {
            assert_eq!(found, [option.key.as_str()]);
            assert_ne!(other.hash(), base.hash(), "{}", option.key);
        }
    }
    let options: Vec<_> = Config::options().iter().flat_map(|s| &s.options).map(|o| o.key.as_str()).collect();
    assert!(FREE.iter().all(|key| options.contains(key)));
}

#[test]
fn differences_show_both_values() {
    let ours = Config::default();
    let mut theirs = ours.clone();
    theirs.optim.rate = 0.1;
    let [difference] = &ours.differences(&theirs)[..] else { panic!("one difference") };
    assert_eq!((&*difference.key, &*difference.ours, &*difference.theirs), ("optim.rate", "0.019", "0.1"));
    assert_eq!(ours.hash().len(), 64);
}

#[test]
fn floats_are_saved_as_they_were_written() {
    let text = Config::default().to_toml();
    for line in ["rate = 0.019", "beta2 = 0.99", "norm_eps = 1e-5", "rope_theta = 10000.0", "warmup = 0.05"] {
        assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
    }
}

/// A value of the option, as TOML.
fn any_value(kind: &Kind) -> BoxedStrategy<String> {
    match kind {
        Kind::Bool => any::<bool>().prop_map(|v| v.to_string()).boxed(),
        Kind::Integer { min, max } => {
            prop_oneof![*min..=*max, *min..=(*max).min(*min + 100)].prop_map(|v| v.to_string()).boxed()
        }
        Kind::Float { min, max, .. } => {
            let (min, max) = (*min, *max);
            let small = (any::<f64>(), -12..3_i32)
                .prop_map(move |(v, e)| (v.fract().abs() * 10_f64.powi(e)).clamp(min, max));
            prop_oneof![min..=max, small].prop_map(|v| format!("{v:?}")).boxed()
        }
        Kind::Choice(values) => {
            let values: Vec<String> = values.iter().map(|(v, _)| v.clone()).collect();
            prop::sample::select(values).boxed()
        }
        Kind::Text => any::<String>().prop_map(|v| toml_string(&v)).boxed(),
        Kind::List => {
            prop::collection::vec(any::<String>().prop_filter("blank", |v| !v.trim().is_empty()), 0..3)
                .prop_map(|v| {
                    format!("[{}]", v.iter().map(|s| toml_string(s)).collect::<Vec<_>>().join(", "))
                })
                .boxed()
        }
    }
}

/// Quotes a string with no help from the code under test.
fn toml_string(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

/// A configuration in which every option is valid, some shape fits, and every option has an effect.
fn any_config() -> impl Strategy<Value = Config> {
    let options = Config::options().iter().flat_map(|section| &section.options);
    let values: Vec<BoxedStrategy<String>> =
        options.map(|o| any_value(&o.kind).prop_map(move |v| format!("{}={v}", o.key)).boxed()).collect();
    let shape = (1..8_usize, 1..8_usize, 1..64_usize);
    (values, shape).prop_map(|(assignments, (kv_heads, groups, half))| {
        let mut config = Config::default();
        assignments.iter().for_each(|set| config.set(set).unwrap());
        config.model.kv_heads = kv_heads;
        config.model.heads = kv_heads * groups;
        config.model.dim = config.model.heads * half * 256;
        config.model.ffn = config.model.ffn.next_multiple_of(256).min(262_144);
        config.model.dim = config.model.dim.min(65_536 / config.model.heads / 256 * 256 * config.model.heads);
        config.run.steps = config.run.steps.max(1);
        if config.run.from.is_empty() {
            (config.run.teach, config.run.relations) = (0.0, 0.0);
        }
        if config.model.lora % 2 == 0 {
            config.model.lora = 0;
        } else {
            config.run.lambda_warmup = 0.0;
            config.model.precision = tritrain_model::Precision::Ternary;
            (config.run.from, config.run.experts) = ("a model".into(), 0);
            config.optim = OptimConfig { rate: config.optim.rate, ..OptimConfig::default() };
        }
        if config.model.precision == tritrain_model::Precision::F32 {
            config.run.lambda_warmup = 0.0;
        }
        if config.run.experts > 0 {
            config.data.clusters_k = config.run.experts as u32;
        }
        if matches!(
            config.optim.direction,
            DirectionKind::Adamw | DirectionKind::Adamw8 | DirectionKind::Prodigy
        ) {
            config.optim.moment = StorageKind::F32;
        }
        let RunConfig { batch, micro_batch, .. } = config.run;
        if config.optim.gradient == GradientKind::None {
            config.run.micro_batch = 0;
        } else if micro_batch > 0 {
            config.run.micro_batch = micro_batch.min(16_384);
            config.run.batch = config.run.micro_batch * (1 + batch % 4);
        }
        if config.optim.direction == DirectionKind::Prodigy {
            (config.optim.radius, config.optim.clusters) = (0.0, 1);
            (config.optim.controller, config.optim.latent) = (ControllerKind::Off, StorageKind::F32);
        }
        if config.optim.schedule == ScheduleKind::Free {
            config.optim.latent = StorageKind::F32;
            let averaged = matches!(config.optim.direction, DirectionKind::Adamw | DirectionKind::Factored);
            if !averaged {
                config.optim.schedule = ScheduleKind::Constant;
            }
        }
        if config.optim.clusters < 2
            || !matches!(config.optim.latent, StorageKind::Trits3 | StorageKind::Trits4)
        {
            config.optim.digits = DigitsKind::Even;
        }
        if config.optim.controller == ControllerKind::Off || config.optim.radius <= 0.0 {
            config.optim.feedback = 0;
        }
        if config.optim.feedback > 0 {
            config.run.relations = 0.0;
        }
        if config.optim.controller != ControllerKind::Learned {
            config.optim.controller_weights.clear();
        }
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn saved_configurations_read_back_equal(config in any_config()) {
        let text = config.to_toml();
        let back = Config::parse(&text, "saved").map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&back, &config);
        prop_assert_eq!(back.to_toml(), text);
        prop_assert!(config.differences(&back).is_empty());
        prop_assert_eq!(back.hash(), config.hash());
    }

    #[test]
    fn no_text_panics(text in ".{0,200}", key in "[a-z_.]{0,12}", value in "\\PC{0,20}") {
        let _ = Config::parse(&text, "x");
        let _ = Config::parse(&format!("[model]\n{key} = {value}"), "x");
        let _ = Config::default().set(&format!("{key}={value}"));
    }
}
