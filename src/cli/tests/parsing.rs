//! Options and their errors.

use super::*;

#[test]
fn the_definition_is_consistent() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    assert!(VARIABLES.iter().all(|variable| help.contains(variable.name)));
}

#[test]
fn no_command_means_serve_and_shared_options_go_anywhere() {
    assert!(parse(&[]).expect("valid").command.is_none());
    for arguments in
        [&["--data-dir", "x", "keys", "list"][..], &["keys", "list", "--data-dir", "x"], &["--data-dir", "x"]]
    {
        assert_eq!(parse(arguments).expect("valid").shared.data_dir, Some("x".into()));
    }
    for command in [&["serve"][..], &["doctor"], &["models", "list"], &["models", "check", "a/b=/c"]] {
        let arguments = [command, &["--data-dir", "x", "--config", "y.toml"]].concat();
        let shared = parse(&arguments).expect("valid").shared;
        assert_eq!((shared.data_dir, shared.config), (Some("x".into()), Some("y.toml".into())));
    }
}

#[test]
fn serve_takes_several_models() {
    let arguments = ["serve", "--listen", "0.0.0.0:80", "--model", "a", "--model", "b=/c", "--device", "cuda:1"];
    let Some(Command::Serve(serve)) = parse(&arguments).expect("valid").command else { panic!("serve") };
    assert_eq!(serve.listen.map(|address| address.port()), Some(80));
    assert_eq!(serve.models.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b=/c"]);
    assert_eq!(serve.device, Some(DeviceChoice::Cuda(1).into()));
    assert!(!serve.download, "only when asked");
    assert_eq!(serve.engine, EngineArgs::default());
}

#[test]
fn parts_are_for_the_models_with_a_path() {
    let parts = ["--base", "a/base", "--text-encoder", "/t5", "--text-encoder", "/clip", "--vae", "/ae"];
    let served = [&["serve", "--model", "a", "--model", "b=/c.gguf"][..], &parts[..]].concat();
    let Some(Command::Serve(serve)) = parse(&served).expect("valid").command else { panic!("serve") };
    let models = with_parts(serve.models.clone(), &serve.parts, &serve.attachments).expect("one has a path");
    assert!(models[0].parts.is_empty(), "it is complete in itself");
    let (base, vae) = (Some("a/base".into()), Some("/ae".into()));
    assert_eq!(
        models[1].parts,
        ModelParts { base, text_encoders: vec!["/t5".into(), "/clip".into()], vae, ..ModelParts::default() }
    );
    let without_path = |parts: &PartArgs| {
        let models = vec!["a".parse().expect("a model")];
        with_parts(models, parts, &AttachmentArgs::default()).map_err(|error| error.to_string())
    };
    let refused = without_path(&serve.parts).expect_err("no path");
    assert!(refused.contains("`--base`") && refused.contains("`--model ID=PATH`"), "{refused}");
    assert!(without_path(&PartArgs::default()).is_ok());
    for command in [
        &["generate", "--model", "b=/c", "--prompt", "d", "--output", "e.png"][..],
        &["models", "check", "b=/c"],
        &["bench", "time", "--model", "b=/c"],
        &["bench", "load", "--model", "b=/c"],
        &["bench", "fidelity", "--model", "b=/c"],
    ] {
        assert!(parse(&[command, &parts[..]].concat()).is_ok(), "{command:?}");
    }
}

#[test]
fn controlnets_are_for_the_models_with_a_path() {
    let beside =
        ["--controlnet", "canny=/nets/c=1", "--controlnet", "union=/u", "--redux", "/r", "--depth-model", "/d"];
    let served = [&["serve", "--model", "a", "--model", "b=/c"][..], &beside[..]].concat();
    let Some(Command::Serve(serve)) = parse(&served).expect("valid").command else { panic!("serve") };
    let attached = |models: Vec<ModelSource>| with_parts(models, &serve.parts, &serve.attachments);
    let models = attached(serve.models.clone()).expect("one has a path");
    assert!(models[0].parts.is_empty(), "it is complete in itself");
    let expected = Attachments {
        controlnets: vec![("canny".into(), "/nets/c=1".into()), ("union".into(), "/u".into())],
        redux: Some("/r".into()),
        depth: Some("/d".into()),
    };
    assert_eq!(models[1].parts, ModelParts { attachments: expected, ..ModelParts::default() });
    let refused = attached(vec!["a".parse().expect("a model")]).expect_err("no path").to_string();
    assert!(refused.contains("`--controlnet`") && refused.contains("`--model ID=PATH`"), "{refused}");
    for (second, reason) in [("canny=/other", "`canny` twice"), ("my net=/other", "`my net` is no name")] {
        let twice = ["serve", "--model", "b=/c", "--controlnet", "canny=/nets", "--controlnet", second];
        let Some(Command::Serve(serve)) = parse(&twice).expect("valid").command else { panic!("serve") };
        let refused = with_parts(serve.models, &serve.parts, &serve.attachments).expect_err("named badly").to_string();
        assert!(refused.starts_with("`--controlnet`: ") && refused.contains(reason), "{refused}");
    }
}

#[tokio::test]
async fn what_is_loaded_beside_a_model_is_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("worker.toml");
    let table = r#"
        [[models]]
        id = "my/tune"
        path = "/weights"
        controlnets = { canny = "/nets/canny" }
        redux = "/redux"
    "#;
    std::fs::write(&file, table).expect("written");
    let file = file.to_str().expect("UTF-8");
    let (table, _) = run_in(folder.path(), &["models", "list", "--config", file]).await.expect("listed");
    let lines: Vec<&str> = table.lines().skip_while(|line| !line.starts_with("my/tune ")).take(3).collect();
    assert!(lines[0].ends_with(" /weights"), "{table}");
    assert_eq!(lines[1..], ["    ControlNet `canny`: /nets/canny", "    FLUX.1-Redux: /redux"]);
}

#[test]
fn engine_options_apply_to_every_command_with_an_engine() {
    let engine = [
        "--offload",
        "text",
        "--deterministic",
        "--kernels",
        "portable",
        "--precision",
        "fp8",
        "--weights",
        "expanded",
        "--memory-budget",
        "12GiB",
        "--graphs",
        "--threads",
        "3",
    ];
    let asked = EngineArgs {
        offload: Some(Offload::Text),
        deterministic: true,
        kernels: Some(Kernels::Portable),
        precision: Some(Precision::Fp8),
        weights: Some(WeightStorage::Expanded),
        memory_budget: Some(ByteSize(12 << 30)),
        graphs: true,
        threads: Some(3),
    };
    let generate = ["generate", "--model", "a", "--prompt", "b", "--output", "c.png"];
    let Some(Command::Serve(serve)) = parse(&[&["serve"][..], &engine[..]].concat()).expect("valid").command else {
        panic!("serve")
    };
    let Some(Command::Generate(generate)) = parse(&[&generate[..], &engine[..]].concat()).expect("valid").command
    else {
        panic!("generate")
    };
    assert_eq!((serve.engine, generate.engine), (asked.clone(), asked));
    let refused = parse(&["serve", "--offload", "vae"]).expect_err("no such thing").to_string();
    assert!(refused.contains("use `auto`, `none`, `text` or `blocks`"), "{refused}");
    let refused = parse(&["serve", "--precision", "int8"]).expect_err("no such thing").to_string();
    assert!(refused.contains("use `full`, or `bf16` or `fp8`"), "{refused}");
    assert!(parse(&["serve", "--threads", "0"]).is_err());
}

#[tokio::test]
async fn models_are_listed_with_their_licenses_and_why_some_do_not_work_yet() {
    let folder = tempfile::tempdir().expect("a folder");
    let (table, _) = run_in(folder.path(), &["models", "list"]).await.expect("listed");
    let row = |id: &str| {
        let row = table.lines().find(|line| line.starts_with(&format!("{id} ")));
        row.unwrap_or_else(|| panic!("no {id} in {table}")).to_owned()
    };
    let shapes = row("fluxserve/flux-shapes");
    assert!(shapes.contains(" served ") && shapes.ends_with("in the program"), "{shapes}");
    let schnell = row("black-forest-labs/FLUX.1-schnell");
    assert!(schnell.contains(" known ") && schnell.contains(" Apache-2.0 "), "{schnell}");
    let gguf = row("city96/FLUX.1-schnell-gguf");
    assert!(gguf.contains(" Apache-2.0 "), "{gguf}");
    assert!(gguf.contains("needs `--base black-forest-labs/FLUX.1-schnell` (autoencoder, CLIP, T5, "), "{gguf}");
    let klein = row("black-forest-labs/FLUX.2-klein-4B");
    assert!(klein.contains(" not yet ") && klein.contains("it is of the family FLUX.2"), "{klein}");
    for command in [
        &["models", "check"][..],
        &["models", "download"],
        &["generate", "--prompt", "", "--output", "x.png", "--model"],
    ] {
        let arguments = [command, &["black-forest-labs/FLUX.2-klein-4B"]].concat();
        let error = run_in(folder.path(), &arguments).await.expect_err("refused").to_string();
        assert!(error.contains("does not work yet: it is of the family FLUX.2"), "{error}");
    }
}

#[test]
fn files_of_a_repository_are_named_one_by_one() {
    let arguments = ["models", "download", "city96/FLUX.1-dev-gguf", "--file", "Q4_K_S", "--file", "Q8_0"];
    let Some(Command::Models(ModelsCommand::Download(download))) = parse(&arguments).expect("valid").command else {
        panic!("download")
    };
    assert_eq!(download.files, ["Q4_K_S", "Q8_0"]);
    let generate = ["generate", "--model", "a=/b.gguf", "--base", "c/d", "--prompt", "e", "--output", "f.png"];
    for (option, expected) in [(&[][..], false), (&["--download"], true)] {
        let Some(Command::Generate(generate)) = parse(&[&generate[..], option].concat()).expect("valid").command else {
            panic!("generate")
        };
        assert_eq!(generate.download, expected);
    }
}

#[test]
fn mistakes_are_usage_errors() {
    let generate = ["generate", "--model", "a", "--output", "x.png"];
    let with_prompt = [&generate[..], &["--prompt", "fox"]].concat();
    let cases = [
        (vec!["paint"], ErrorKind::InvalidSubcommand),
        (vec!["serve", "--listen", "8080"], ErrorKind::ValueValidation),
        (vec!["serve", "--device", "gpu"], ErrorKind::ValueValidation),
        (vec!["keys", "create", "--name", "n"], ErrorKind::MissingRequiredArgument),
        (vec!["keys", "create", "--name", "n", "--scope", "admin"], ErrorKind::ValueValidation),
        (
            vec!["keys", "create", "--name", "n", "--scope", "all", "--expires-at", "tomorrow"],
            ErrorKind::ValueValidation,
        ),
        (
            vec!["keys", "create", "--name", "n", "--scope", "all", "--expires-at", "2030-01-01T00:00:00"],
            ErrorKind::ValueValidation,
        ),
        (vec!["keys", "edit", "rgpu_00000000"], ErrorKind::MissingRequiredArgument),
        (
            vec!["keys", "edit", "rgpu_00000000", "--never-expires", "--expires-at", "2030-01-01T00:00:00Z"],
            ErrorKind::ArgumentConflict,
        ),
        (vec!["keys", "edit", "rgpu_00000000", "--concurrent-jobs", "many"], ErrorKind::ValueValidation),
        (vec!["keys", "edit", "rgpu_00000000", "--priority", "urgent"], ErrorKind::ValueValidation),
        (vec!["keys", "create", "--name", "n", "--scope", "all", "--priority", "4"], ErrorKind::ValueValidation),
        (vec!["keys", "usage", "rgpu_00000000", "--days", "0"], ErrorKind::ValueValidation),
        (vec!["keys", "rotate", "rgpu_00000000", "--grace-seconds", "604801"], ErrorKind::ValueValidation),
        (vec!["admin", "set-password", "an argument is visible to others"], ErrorKind::UnknownArgument),
        (vec!["backup"], ErrorKind::MissingRequiredArgument),
        (vec!["models", "download"], ErrorKind::MissingRequiredArgument),
        (generate.to_vec(), ErrorKind::MissingRequiredArgument),
        ([&with_prompt[..], &["--true-cfg-scale", "4"]].concat(), ErrorKind::MissingRequiredArgument),
        ([&with_prompt[..], &["--mask", "m.png"]].concat(), ErrorKind::MissingRequiredArgument),
        ([&with_prompt[..], &["--image", "i.png", "--mask-padding", "8"]].concat(), ErrorKind::MissingRequiredArgument),
        ([&with_prompt[..], &["--style", "s.png"]].concat(), ErrorKind::MissingRequiredArgument),
        ([&with_prompt[..], &["--redux", "r", "--style", "=2"]].concat(), ErrorKind::ValueValidation),
        ([&with_prompt[..], &["--preprocess", "canny"]].concat(), ErrorKind::ArgumentConflict),
        (
            [&with_prompt[..], &["--control-image", "c.png", "--preprocess", "edges"]].concat(),
            ErrorKind::ValueValidation,
        ),
        (vec!["serve", "--controlnet", "/nets/canny"], ErrorKind::ValueValidation),
        ([&with_prompt[..], &["--seed", "9007199254740992"]].concat(), ErrorKind::ValueValidation),
        (vec!["generate", "--model", "a", "--prompt", "fox", "--output", "x.gif"], ErrorKind::ValueValidation),
        ([&with_prompt[..], &["--cache", "teacache"]].concat(), ErrorKind::ValueValidation),
        ([&with_prompt[..], &["--cache", "first_block=low"]].concat(), ErrorKind::ValueValidation),
        (vec!["bench", "time"], ErrorKind::MissingRequiredArgument),
        (vec!["bench", "time", "--model", "a", "--sizes", "512x512,1024"], ErrorKind::ValueValidation),
        (vec!["bench", "time", "--model", "a", "--counts", "0"], ErrorKind::ValueValidation),
        (vec!["bench", "time", "--model", "a", "--steps", "101"], ErrorKind::ValueValidation),
        (vec!["bench", "load", "--device", "cpu"], ErrorKind::MissingRequiredArgument),
        (vec!["bench", "stages", "--model", "a", "--prompt", ""], ErrorKind::MissingRequiredArgument),
        (vec!["bench", "fidelity"], ErrorKind::MissingRequiredArgument),
        (vec!["bench", "fidelity", "--model", "a", "--precision", "fp4"], ErrorKind::ValueValidation),
        (vec!["bench", "fidelity", "--model", "a", "--cache-thresholds", "0.1,low"], ErrorKind::ValueValidation),
        (vec!["bench", "fidelity", "--model", "a", "--seeds", "-1"], ErrorKind::UnknownArgument),
    ];
    for (arguments, kind) in cases {
        let error = parse_error(&arguments);
        assert_eq!(error.kind(), kind, "{arguments:?}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    assert_eq!(parse_error(&["--help"]).exit_code(), 0);
}

/// Every option of `generate`.
const ALL_OPTIONS: [&str; 63] = [
    "generate",
    "--model",
    "a=/b",
    "--prompt",
    "-fox",
    "--prompt-2",
    "two",
    "--negative-prompt",
    "",
    "--true-cfg-scale",
    "4",
    "--width",
    "100",
    "--height",
    "512",
    "--steps",
    "7",
    "--guidance",
    "2.5",
    "--seed",
    "9007199254740991",
    "--max-sequence-length",
    "256",
    "--image",
    "from.jpg",
    "--strength",
    "0.3",
    "--mask",
    "mask.png",
    "--mask-padding",
    "32",
    "--reference",
    "r1.png",
    "--reference",
    "r2.png",
    "--control-image",
    "c.png",
    "--controlnet",
    "nets/union",
    "--control-mode",
    "pose",
    "--control-scale",
    "0.7",
    "--preprocess",
    "depth",
    "--control-end",
    "0.8",
    "--redux",
    "redux",
    "--style",
    "s.png=0.5",
    "--style",
    "t.png",
    "--depth-model",
    "depth",
    "--lora",
    "a.safetensors=-0.5",
    "--lora",
    "b.safetensors",
    "--cache",
    "first_block=0.2",
    "--output",
    "x.PNG",
];

#[test]
fn generate_passes_all_options_on() {
    let Some(Command::Generate(generate)) = parse(&ALL_OPTIONS).expect("valid").command else { panic!("generate") };
    let mut notes = Vec::new();
    let no_seed = || -> anyhow::Result<u64> { panic!("the seed is given") };
    let request = generate.into_request(&Config::default(), no_seed, &mut notes).expect("a request");
    let expected = GenerateParams {
        prompt: "-fox".into(),
        prompt_2: Some("two".into()),
        negative_prompt: Some(String::new()),
        true_cfg_scale: Some(4.0),
        width: Some(96),
        height: Some(512),
        steps: Some(7),
        guidance: Some(2.5),
        seed: 9_007_199_254_740_991,
        sequence_length: Some(256),
        images: Vec::new(),
        mask_padding: Some(32),
        overlay: None,
        step_cache: Some(StepCache { threshold: 0.2 }),
        strength: Some(0.3),
        loras: Vec::new(),
    };
    let loras: Vec<_> = request.loras.into_iter().map(|lora| (lora.file.display().to_string(), lora.scale)).collect();
    assert_eq!(loras, [("a.safetensors".to_owned(), -0.5), ("b.safetensors".to_owned(), 1.0)]);
    assert_eq!(request.params, expected);
    assert_eq!((request.model.to_string(), request.output), ("a=/b".into(), "x.PNG".into()));
    assert_eq!(String::from_utf8(notes).expect("text"), "width 100 is not a multiple of 16: using 96\n");
}

#[test]
fn generate_passes_all_images_on() {
    let Some(Command::Generate(generate)) = parse(&ALL_OPTIONS).expect("valid").command else { panic!("generate") };
    let no_seed = || -> anyhow::Result<u64> { panic!("the seed is given") };
    let request = generate.into_request(&Config::default(), no_seed, &mut Vec::new()).expect("a request");
    let files: Vec<_> = request.images.iter().map(|image| format!("{} {}", image.role, image.file.display())).collect();
    let expected = [
        "input from.jpg",
        "mask mask.png",
        "control c.png",
        "reference r1.png",
        "reference r2.png",
        "style s.png",
        "style t.png",
    ];
    assert_eq!(files, expected);
    let plain = ImageOptions::default();
    let control = ImageOptions {
        controlnet: Some("nets/union".into()),
        mode: Some(ControlMode(4)),
        preprocess: Some(Preprocess::Depth),
        scale: Some(0.7),
        start: None,
        end: Some(0.8),
    };
    let options: Vec<_> = request.images.iter().map(|image| &image.options).collect();
    let half = ImageOptions { scale: Some(0.5), ..plain.clone() };
    assert_eq!(options, [&plain, &plain, &control, &plain, &plain, &half, &plain]);
    let attachments = Attachments {
        controlnets: vec![("nets/union".into(), "nets/union".into())],
        redux: Some("redux".into()),
        depth: Some("depth".into()),
    };
    assert_eq!(request.model.parts.attachments, attachments);
}

#[test]
fn a_random_seed_is_printed() {
    let arguments = ["generate", "--model", "a", "--prompt", "", "--output", "x.png"];
    let Some(Command::Generate(generate)) = parse(&arguments).expect("valid").command else { panic!("generate") };
    let mut notes = Vec::new();
    let request = generate.into_request(&Config::default(), || Ok(42), &mut notes).expect("a request");
    assert_eq!((request.params.seed, request.params.width), (42, None));
    assert_eq!(String::from_utf8(notes).expect("text"), "seed: 42\n");
    for _ in 0..100 {
        assert!(crate::domain::spec::random_seed().expect("random bytes") <= crate::domain::spec::SEED_MAX);
    }
}
