//! Commands on keys, the password and the database.

use super::*;

#[tokio::test]
async fn keys_are_created_listed_and_revoked() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    let create =
        ["keys", "create", "--name", "my laptop", "--scope", "inference", "--expires-at", "2999-12-31T23:30:00-01:00"];
    let (out, notes) = run_in(&data_dir, &create).await.expect("made");
    let value = out.strip_suffix('\n').expect("a line");
    assert_eq!(value.len(), 51, "the key alone");
    assert!(!notes.contains(value) && notes.contains(&value[..13]));
    run_in(&data_dir, &["keys", "create", "--name", "other", "--scope", "kubernetes-exec:all"]).await.expect("made");
    let nowhere = "kubernetes-exec:018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f";
    let refused = run_in(&data_dir, &["keys", "create", "--name", "other", "--scope", nowhere]).await;
    assert!(refused.expect_err("refused").to_string().contains("no namespace with id 018f3c1e"));

    let (table, _) = run_in(&data_dir, &["keys", "list"]).await.expect("listed");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].starts_with("PREFIX         NAME       STATE   SCOPE                PRIORITY  CREATED"),
        "{table}"
    );
    assert!(lines[1].starts_with(&format!("{}  my laptop  active  inference ", &value[..13])), "{table}");
    assert!(lines[1].ends_with("3000-01-01T00:30:00Z  -"), "{table}");
    assert!(!table.contains(value));

    for _ in 0..2 {
        let (out, notes) = run_in(&data_dir, &["keys", "revoke", &value[..13]]).await.expect("revoked, also twice");
        assert!(out.is_empty() && notes.contains("my laptop"), "{notes}");
    }
    let (table, _) = run_in(&data_dir, &["keys", "list"]).await.expect("listed");
    assert!(table.lines().nth(1).is_some_and(|line| line.contains(" revoked ")), "{table}");
}

#[tokio::test]
async fn a_key_has_its_given_priority() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = async |arguments: &[&str]| run_in(folder.path(), arguments).await;
    let create = ["keys", "create", "--name", "shop", "--scope", "inference"];
    let (value, _) = run(&[&create[..], &["--priority", "high"]].concat()).await.expect("made");
    run(&create).await.expect("made");
    let priorities = async || {
        let (table, _) = run(&["keys", "list"]).await.expect("listed");
        let column = table.find("PRIORITY").expect("a column");
        table.lines().skip(1).map(|line| line[column..].split(' ').next().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(priorities().await, [Some("high".to_owned()), Some("normal".to_owned())]);
    let (_, notes) = run(&["keys", "edit", &value[..13], "--priority", "low"]).await.expect("edited");
    assert!(notes.contains("(shop): active, scope inference, expires never, priority low"), "{notes}");
    run(&["keys", "edit", &value[..13], "--name", "outlet"]).await.expect("edited");
    assert_eq!(priorities().await, [Some("low".to_owned()), Some("normal".to_owned())]);
}

#[tokio::test]
async fn keys_are_rotated_and_edited() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = async |arguments: &[&str]| run_in(folder.path(), arguments).await;
    let (out, _) = run(&["keys", "create", "--name", "ci", "--scope", "all"]).await.expect("made");
    let first = out[..13].to_owned();
    let (out, notes) = run(&["keys", "rotate", &first, "--grace-seconds", "3600"]).await.expect("rotated");
    let value = out.strip_suffix('\n').expect("a line");
    assert_eq!(value.len(), 51, "the key alone");
    assert!(!notes.contains(value) && notes.contains(&format!("the old value {first} works until ")), "{notes}");
    let second = &value[..13];
    let edit =
        ["keys", "edit", &first, "--name", "build", "--scope", "inference", "--expires-at", "2999-01-01T00:00:00Z"];
    let (_, notes) = run(&edit).await.expect("edited, by the old prefix");
    assert!(notes.contains("(build): active, scope inference, expires 2999-01-01T00:00:00Z"), "{notes}");
    let (_, notes) = run(&["keys", "edit", second, "--never-expires"]).await.expect("edited");
    assert!(notes.contains("(build): active, scope inference, expires never"), "{notes}");
    let (_, notes) = run(&["keys", "rotate", second]).await.expect("rotated");
    assert!(notes.contains("the old value no longer works"), "{notes}");
    let third = out_prefix(&run(&["keys", "list"]).await.expect("listed").0);
    let limits = ["--requests-per-minute", "60", "--concurrent-jobs", "none", "--megapixel-steps-per-day", "1000"];
    run(&[&["keys", "edit", &third][..], &limits].concat()).await.expect("edited");
    let error = run(&["keys", "edit", &third, "--concurrent-jobs", "0"]).await.expect_err("no limit");
    assert!(error.to_string().contains("from 1 to"), "{error}");
    let (table, _) = run(&["keys", "usage", &third, "--days", "2"]).await.expect("shown");
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.lines().nth(2).is_some_and(|line| line.split_whitespace().skip(1).eq(["0", "0", "0.0", "0.0"])));
    let error = run(&["keys", "edit", second, "--name", "gone"]).await.expect_err("replaced without a grace");
    assert!(error.to_string().contains(second), "{error}");
}

/// The prefix in the first row of a table.
fn out_prefix(table: &str) -> String {
    table.lines().nth(1).expect("a row")[..13].to_owned()
}

#[tokio::test]
async fn a_password_is_read_from_the_input_and_a_backup_is_a_database() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let set = ["admin", "set-password"];
    let error = run_with_input(&data, &set, "short\n").await.expect_err("too short");
    assert!(error.to_string().contains("12 to 256") && !data.exists(), "{error}");
    let (out, notes) = run_with_input(&data, &set, "a good password\n").await.expect("set");
    assert!(out.is_empty() && !notes.contains("a good password"), "{notes}");
    let copy = folder.path().join("copy").join("fluxserve.db");
    let path = copy.to_str().expect("text");
    let error = run_in(&data, &["backup", path]).await.expect_err("no folder");
    assert!(error.to_string().contains(path), "{error}");
    std::fs::create_dir(folder.path().join("copy")).expect("made");
    let (_, notes) = run_in(&data, &["backup", path]).await.expect("copied");
    assert!(notes.contains(path), "{notes}");
    run_in(&data, &["backup", path]).await.expect_err("is there already");
    let config = Config { data_dir: folder.path().join("copy"), ..Config::default() };
    let restored = app::Keys::open_existing(&config).await.expect("a database");
    let client = std::net::Ipv4Addr::LOCALHOST.into();
    restored.admin.sign_in("a good password", client).await.expect("the password is in the copy");
}

#[tokio::test]
async fn failures_have_a_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("typo");
    let error = run_in(&missing, &["keys", "list"]).await.expect_err("nothing there");
    assert!(error.to_string().contains("no database"), "{error}");
    assert!(!missing.exists());

    let past = ["keys", "create", "--name", "n", "--scope", "all", "--expires-at", "2001-01-01T00:00:00Z"];
    let error = run_in(folder.path(), &past).await.expect_err("in the past");
    assert!(error.to_string().contains("in the future"), "{error}");
    let error = run_in(folder.path(), &["keys", "revoke", "rgpu_00000000"]).await.expect_err("unknown");
    assert!(error.to_string().contains("rgpu_00000000"), "{error}");
}

#[tokio::test]
async fn the_first_start_creates_one_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
    let keys = app::Keys::open(&config).await.expect("opens");
    let demo = keys.demo_key(&config).await.expect("made").expect("the first");
    assert_eq!(demo.record.scope.to_string(), "inference");
    assert!(keys.demo_key(&config).await.expect("counted").is_none());
}

#[tokio::test]
async fn the_first_start_creates_a_password_unless_one_is_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = |name: &str| Config { data_dir: folder.path().join(name), ..Config::default() };
    let client = std::net::Ipv4Addr::LOCALHOST.into();
    let keys = app::Keys::open(&config("fresh")).await.expect("opens");
    let password = keys.first_password().await.expect("made").expect("the first");
    keys.admin.sign_in(password.reveal(), client).await.expect("in");
    assert!(keys.first_password().await.expect("looked").is_none());

    let given = Config { admin_password: "a good password".parse().ok(), ..config("given") };
    let keys = app::Keys::open(&given).await.expect("opens");
    keys.apply_password(&given).await.expect("set");
    assert!(keys.first_password().await.expect("looked").is_none());
    keys.admin.sign_in("a good password", client).await.expect("in");
    assert!(keys.demo_key(&given).await.expect("looked").is_none(), "with a given password there is no demo key");

    let keys = app::Keys::open(&config("used")).await.expect("opens");
    keys.demo_key(&config("used")).await.expect("made").expect("the first");
    assert!(keys.first_password().await.expect("looked").is_none(), "an older worker's database");
    assert!(!keys.admin.has_password().await.expect("looked"));
}

#[tokio::test]
async fn a_key_may_be_limited_to_some_loras() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = async |arguments: &[&str]| run_in(folder.path(), arguments).await;
    let create = ["keys", "create", "--name", "shop", "--scope", "inference", "--loras", "pen, ink"];
    let (value, _) = run(&create).await.expect("made");
    let config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
    let keys = app::Keys::open_existing(&config).await.expect("there");
    let prefix = value[..13].parse::<crate::auth::PublicId>().expect("a prefix");
    let listed = async || {
        let loras = keys.service.get(prefix).await.expect("there").limits.loras;
        loras.map(|loras| loras.iter().map(str::to_owned).collect::<Vec<_>>())
    };
    assert_eq!(listed().await, Some(vec!["ink".to_owned(), "pen".to_owned()]));
    run(&["keys", "edit", &value[..13], "--loras", "pen"]).await.expect("edited");
    assert_eq!(listed().await, Some(vec!["pen".to_owned()]));
    run(&["keys", "edit", &value[..13], "--name", "other"]).await.expect("edited");
    assert_eq!(listed().await.map(|loras| loras.len()), Some(1), "another change leaves them alone");
    run(&["keys", "edit", &value[..13], "--loras", "none"]).await.expect("edited");
    assert_eq!(listed().await, None);
    assert_eq!(parse_error(&["keys", "edit", &value[..13], "--loras", ""]).kind(), ErrorKind::ValueValidation);
}
