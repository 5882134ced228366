//! A tiny model: its numbers, its names, and what is refused.

use std::collections::HashMap;

use tempfile::TempDir;

use super::*;

/// A model of the small one's shape, in which every size is another one.
const TINY: &str = r#"{
    "backbone_config": {
        "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 4, "image_size": 28, "patch_size": 14,
        "out_indices": [1, 2, 3, 4], "model_type": "dinov2"
    },
    "neck_hidden_sizes": [3, 4, 5, 6], "fusion_hidden_size": 4, "head_hidden_size": 3, "model_type": "depth_anything"
}"#;

fn tiny() -> DepthConfig {
    serde_json::from_str::<FileConfig>(TINY).expect("a configuration").checked().expect("supported")
}

/// Number `index` of a tensor by the model's own name.
fn number(name: &str, index: usize) -> f32 {
    let seed = name.bytes().zip(1..).map(|(byte, place): (u8, usize)| usize::from(byte) * place).sum::<usize>() % 1000;
    let drawn = (index * index * 31 + index * 7919 + seed * 613) % 997;
    ((drawn as f64 / 997.0 - 0.5) * 0.8 + 0.05) as f32
}

/// The tensors of the tiny model as a file has them.
fn made(spelling: Spelling) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    for wanted in tiny().wanted(spelling) {
        let (name, shape) = wanted.whole();
        let numbers: Vec<f32> = (0..shape.iter().product::<usize>()).map(|index| number(name, index)).collect();
        let (parts, shape) = wanted.in_file();
        for (part, numbers) in parts.iter().zip(numbers.chunks(numbers.len() / parts.len())) {
            let tensor = Tensor::from_vec(numbers.to_vec(), shape.as_slice(), &Device::Cpu).expect("a tensor");
            tensors.insert(part.clone(), tensor);
        }
    }
    tensors
}

/// A folder with the tiny model.
fn folder_of(tensors: &HashMap<String, Tensor>) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    candle_core::safetensors::save(tensors, folder.path().join(WEIGHTS)).expect("written");
    std::fs::write(folder.path().join(CONFIG), TINY).expect("written");
    folder
}

fn estimator(spelling: Spelling) -> DepthEstimator {
    let folder = folder_of(&made(spelling));
    DepthFiles::open(folder.path()).expect("complete").load().expect("loads")
}

/// An image of no color in particular.
fn pattern(width: usize, height: usize) -> RgbImage {
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let bytes = places.flat_map(|(x, y)| (0..CHANNELS).map(move |c| ((x * 7 + y * 13 + c * 50) % 256) as u8)).collect();
    RgbImage::new(width as u32, height as u32, bytes).expect("three bytes per pixel")
}

/// The numbers were computed in float64 by a program of its own, from the formulas of `modeling_depth_anything.py`.
#[test]
fn inverse_depth_is_what_the_formulas_give() {
    let seen = Size { height: 28, width: 42 };
    assert_eq!(seen_size(seen, 28, 14), seen);
    let depth = estimator(Spelling::Transformers).estimate(&pattern(42, 28), seen, seen).expect("estimates");
    let expected = [
        ((0, 0), 0.564_289),
        ((0, 41), 0.990_191),
        ((13, 20), 3.095_34),
        ((14, 21), 3.162_007),
        ((27, 0), 1.766_647),
        ((27, 41), 0.867_137),
        ((5, 33), 1.790_612),
        ((20, 7), 2.070_67),
    ];
    for ((row, column), value) in expected {
        let found = depth[row * 42 + column];
        assert!((found - value).abs() < 1e-4, "{row}, {column}: {found}, not {value}");
    }
    let mean = depth.iter().sum::<f32>() / depth.len() as f32;
    assert!((mean - 1.923_893).abs() < 1e-4, "{mean}");
}

#[test]
fn a_map_is_gray_from_black_to_white_in_the_size_of_its_image() {
    let (transformers, original) = (estimator(Spelling::Transformers), estimator(Spelling::Original));
    for (width, height) in [(42, 28), (50, 31), (64, 200), (1, 1)] {
        let image = pattern(width, height);
        let map = transformers.map(&image).expect("a map");
        assert_eq!((map.width(), map.height()), (image.width(), image.height()));
        assert!(map.pixels().as_chunks::<CHANNELS>().0.iter().all(|[red, green, blue]| red == green && green == blue));
        let ends = (map.pixels().iter().min(), map.pixels().iter().max());
        assert!(ends == (Some(&0), Some(&255)) || (width, height) == (1, 1), "{ends:?}");
        assert!(map == transformers.map(&image).expect("a map"), "twice the same");
        assert!(map == original.map(&image).expect("a map"), "in either spelling");
    }
    let nothing = RgbImage::new(0, 4, Vec::new()).expect("no pixels");
    assert!(matches!(transformers.map(&nothing), Err(EngineError::Request(_))));
}

#[test]
fn names_are_those_of_the_published_files() {
    let names = |spelling| -> Vec<String> {
        DepthConfig::small().wanted(spelling).iter().flat_map(|wanted| wanted.in_file().0.to_vec()).collect()
    };
    let (transformers, original) = (names(Spelling::Transformers), names(Spelling::Original));
    for (name, other) in [
        ("backbone.embeddings.cls_token", "pretrained.cls_token"),
        ("backbone.embeddings.position_embeddings", "pretrained.pos_embed"),
        ("backbone.embeddings.patch_embeddings.projection.bias", "pretrained.patch_embed.proj.bias"),
        ("backbone.encoder.layer.11.attention.attention.value.weight", "pretrained.blocks.11.attn.qkv.weight"),
        ("backbone.encoder.layer.0.attention.output.dense.bias", "pretrained.blocks.0.attn.proj.bias"),
        ("backbone.encoder.layer.3.layer_scale2.lambda1", "pretrained.blocks.3.ls2.gamma"),
        ("backbone.layernorm.weight", "pretrained.norm.weight"),
        ("neck.reassemble_stage.layers.3.resize.weight", "depth_head.resize_layers.3.weight"),
        ("neck.convs.0.weight", "depth_head.scratch.layer1_rn.weight"),
        (
            "neck.fusion_stage.layers.0.residual_layer1.convolution2.bias",
            "depth_head.scratch.refinenet4.resConfUnit1.conv2.bias",
        ),
        ("neck.fusion_stage.layers.3.projection.weight", "depth_head.scratch.refinenet1.out_conv.weight"),
        ("head.conv3.weight", "depth_head.scratch.output_conv2.2.weight"),
    ] {
        assert!(transformers.iter().any(|found| found == name), "{name}");
        assert!(original.iter().any(|found| found == other), "{other}");
    }
    let elements: usize = DepthConfig::small()
        .wanted(Spelling::Original)
        .iter()
        .map(|wanted| wanted.whole().1.iter().product::<usize>())
        .sum();
    // The model has 24,785,089 parameters; its mask token is for training.
    assert_eq!(elements, 24_785_089 - 384);
}

#[test]
fn an_image_is_seen_in_its_proportions_in_whole_patches() {
    let seen = |width, height| {
        let Size { width, height } = seen_size(Size { height, width }, 518, 14);
        (width, height)
    };
    assert_eq!(seen(518, 518), (518, 518));
    assert_eq!(seen(1024, 1024), (518, 518));
    // That of the example in the model's conversion script.
    assert_eq!(seen(640, 480), (686, 518));
    assert_eq!(seen(480, 640), (518, 686));
    assert_eq!(seen(2048, 64), (518, 14), "never less than a patch");
}

#[test]
fn levels_reach_from_the_least_to_the_largest_value() {
    assert_eq!(levels(&[-1.0, 0.0, 3.0]), Some(vec![0, 64, 255]));
    assert_eq!(levels(&[2.0, 2.0]), Some(vec![0, 0]), "a flat map");
    assert_eq!(levels(&[0.0, f32::NAN]), None);
    assert_eq!(levels(&[f32::INFINITY, 0.0]), None);
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let refused = |path: &Path| DepthFiles::open(path).err().expect("refused").to_string();
    let error = refused(Path::new("no/such/file.safetensors"));
    assert!(error.contains("no/such/file.safetensors") && error.contains("Depth-Anything-V2-Small-hf"), "{error}");
    let mut tensors = made(Spelling::Transformers);
    tensors.remove("head.conv2.bias");
    let folder = folder_of(&tensors);
    let error = refused(folder.path());
    assert!(error.contains("tensor `head.conv2.bias` is missing, expected shape [3]"), "{error}");
    // Without its configuration, a file is taken for the small model's.
    let folder = folder_of(&made(Spelling::Transformers));
    std::fs::remove_file(folder.path().join(CONFIG)).expect("removed");
    let error = refused(folder.path());
    assert!(error.contains("`backbone.encoder.layer.0.norm1.weight` has shape [8], expected [384]"), "{error}");
    for (text, reason) in [
        (r#"{"depth_estimation_type": "metric"}"#, "depth_estimation_type must be relative"),
        (r#"{"neck_hidden_sizes": [1, 2]}"#, "neck_hidden_sizes must have four widths"),
        (r#"{"backbone_config": {"out_indices": [3, 6, 9, 13]}}"#, "out_indices must name blocks"),
        (r#"{"backbone_config": {"out_indices": [3, 3, 6, 9]}}"#, "out_indices must name blocks"),
        (r#"{"backbone_config": {"hidden_size": 7, "num_attention_heads": 2}}"#, "attention heads"),
        (r#"{"backbone_config": {"mlp_ratio": -1}}"#, "mlp_ratio"),
        (r#"{"reassemble_factors": [1, 1, 1, 1]}"#, "reassemble_factors"),
        ("{", "config.json: "),
    ] {
        std::fs::write(folder.path().join(CONFIG), text).expect("written");
        let error = refused(folder.path());
        assert!(error.contains(reason), "{text}: {error}");
    }
}
