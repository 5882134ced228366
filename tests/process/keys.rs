//! Keys on the command line.

use super::*;

/// Exit code and output of a command, which must not contain the key's secret.
fn tell(data: &Path, secret: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(data, arguments);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(!said.contains(&secret[..6]), "{arguments:?} repeats the secret: {said}");
    (output.status.code(), said)
}

#[test]
fn a_full_key_stands_for_its_prefix() {
    let (_folder, data) = folder();
    let made = run(&data, &["keys", "create", "--name", "leaked", "--scope", "all"]);
    let key = text(&made.stdout).trim().to_owned();
    let (prefix, secret) = key.split_at(13);
    for arguments in [
        &["keys", "edit", &key, "--name", "still leaked"][..],
        &["keys", "usage", &key],
        &["keys", "revoke", &key],
        &["keys", "revoke", prefix],
    ] {
        assert_eq!(tell(&data, secret, arguments).0, Some(0), "{arguments:?}");
    }
    let (_, listed) = tell(&data, secret, &["keys", "list"]);
    assert!(listed.contains(prefix) && listed.contains("still leaked") && listed.contains("revoked"), "{listed}");

    let made = run(&data, &["keys", "create", "--name", "another", "--scope", "all"]);
    let another = text(&made.stdout).trim().to_owned();
    let rotated = run(&data, &["keys", "rotate", &another]);
    let new = text(&rotated.stdout).trim().to_owned();
    assert!(rotated.status.success() && new.starts_with("rgpu_") && new != another, "{rotated:?}");
    assert!(!(text(&rotated.stderr) + &new).contains(&another[13..19]), "{rotated:?}");
    let (_, listed) = tell(&data, &another[13..], &["keys", "list"]);
    assert!(listed.contains(&new[..13]), "{listed}");
}

#[test]
fn a_keys_secret_is_not_repeated_wherever_it_was_pasted() {
    let (_folder, data) = folder();
    let made = run(&data, &["keys", "create", "--name", "leaked", "--scope", "all"]);
    let key = text(&made.stdout).trim().to_owned();
    let (prefix, secret) = key.split_at(13);
    let mistyped = format!("{key}x");
    for arguments in [
        &["keys", "revoke", &mistyped][..],
        &["keys", "revoke", prefix, &key],
        &["keys", "list", &key],
        &["keys", &key],
        &["keys", "usage", prefix, "--days", &key],
        &["keys", "edit", prefix, "--scope", &key],
        &["keys", "revoke", &format!("--prefix={key}")],
        &[key.as_str()],
    ] {
        let (code, said) = tell(&data, secret, arguments);
        assert!(code == Some(1) || code == Some(2), "{arguments:?}: {code:?} {said}");
    }
}
