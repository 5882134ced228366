//! Where finished images are stored.

use super::*;

#[test]
fn images_are_stored_in_the_data_folder_another_or_a_bucket() {
    let config = |file: &str| Sources::new().file(file).load().expect("valid");
    assert_eq!(config("").results_dir(), Path::new("data/results"));
    let folder = if cfg!(windows) { "C:/results" } else { "/mnt/results" };
    let there = config(&format!("[results]\nstore = \"file:///{}\"", folder.trim_start_matches('/')));
    assert_eq!(there.results_dir(), Path::new(folder));
    for (bucket, shown) in [("gs://a/b", "gs://a/b"), ("az://c", "az://c"), ("s3://d/", "s3://d")] {
        let config = config(&format!("[results]\nstore = \"{bucket}\""));
        assert_eq!(config.results_dir(), Path::new("data/results"), "where images wait for the bucket");
        let ResultStore::Bucket(found) = config.results.store else { panic!("{bucket} is a bucket") };
        assert_eq!((found.location.to_string().as_str(), found.redirect_seconds), (shown, None));
    }
    let links = config("[results]\nstore = \"s3://a\"\nlinks = \"redirect\"");
    let ResultStore::Bucket(found) = links.results.store else { panic!("a bucket") };
    assert_eq!(found.redirect_seconds, Some(60));
}

#[test]
fn what_has_no_effect_or_no_sense_is_refused() {
    let cases = [
        ("[results]\nstore = \"ftp://a\"", &["field `results.store`", "s3://bucket/prefix", "file:///mnt/results"][..]),
        ("[results]\nstore = \"file://here\"", &["field `results.store`", "absolute path"]),
        ("[results]\nstore = \"file:///\"", &["field `results.store`", "absolute path of a folder"]),
        ("[results]\nstore = \"file:///mnt/..\"", &["field `results.store`", "absolute path of a folder"]),
        ("[results]\nendpoint = \"https://a\"", &["field `results.endpoint`", "set `results.store`"]),
        ("[results]\nstore = \"file:///a\"\nlinks = \"stream\"", &["field `results.links`", "is for a bucket"]),
        ("[results]\nstore = \"gs://a\"\nregion = \"b\"", &["field `results.region`", "buckets of S3"]),
        (
            "[results]\nstore = \"s3://a\"\nendpoint = \"http://b\"",
            &["field `results.endpoint`", "without TLS", "`results.allow_http`"],
        ),
        (
            "[results]\nstore = \"s3://a\"\nendpoint = \"https://key@b\"",
            &["field `results.endpoint`", "https://s3.example.org"],
        ),
        ("[results]\nstore = \"s3://a\"\nlinks = \"proxy\"", &["field `results.links`", "`stream` or `redirect`"]),
        (
            "[results]\nstore = \"s3://a\"\nlinks = \"redirect\"\nredirect_seconds = 61",
            &["field `results.redirect_seconds`", "from 1 to 60, not 61"],
        ),
        (
            "[results]\nstore = \"s3://a\"\nredirect_seconds = 5",
            &["field `results.redirect_seconds`", "set `results.links`"],
        ),
        ("[results]\nstore = \"s3://a\"\nspool_bytes_max = 1", &["field `results.spool_bytes_max`", "from 1048576"]),
    ];
    for (text, parts) in cases {
        let error = Sources::new().file(text).error();
        for part in [&[DEFAULT_FILE][..], parts].concat() {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
}

#[test]
fn credentials_in_a_url_are_refused_and_not_repeated() {
    for text in ["store = \"s3://key:secret@a\"", "store = \"s3://a\"\nendpoint = \"https://key:secret@b\""] {
        let error = Sources::new().file(&format!("[results]\n{text}")).error();
        assert!(!error.contains("secret"), "{error}");
    }
}
