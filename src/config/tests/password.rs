//! The administrator's password.

use super::*;

#[test]
fn the_password_comes_only_from_the_environment_and_is_never_shown() {
    let sources = || Sources::new().file(COMPLETE_FILE);
    let config = sources().variable("FLUXSERVE_ADMIN_PASSWORD", "a good password").load().expect("valid");
    assert_eq!(config.admin_password.as_ref().map(AdminPassword::reveal), Some("a good password"));
    assert!(!format!("{config:?}").contains("a good password"));
    let error = sources().variable("FLUXSERVE_ADMIN_PASSWORD", "too short").error();
    assert!(error.contains("FLUXSERVE_ADMIN_PASSWORD") && error.contains("12 to 256"), "{error}");
    assert!(!error.contains("too short"), "{error}");
    let error = Sources::new().file("admin_password = \"a good password\"").error();
    assert!(error.contains("unknown field `admin_password`"), "{error}");
}

#[test]
fn the_password_can_be_in_a_file_that_the_environment_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    let name: &'static str = file.to_str().expect("a text").to_owned().leak();
    let sources = || Sources::new().file(COMPLETE_FILE).variable("FLUXSERVE_ADMIN_PASSWORD_FILE", name);
    let with = |content: &[u8]| {
        std::fs::write(&file, content).expect("written");
        sources()
    };
    for content in ["a good password", "a good password\n", "a good password\r\n"] {
        let config = with(content.as_bytes()).load().expect("valid");
        assert_eq!(config.admin_password.as_ref().map(AdminPassword::reveal), Some("a good password"), "{content:?}");
    }
    let longest = "\u{1F511}".repeat(256);
    let config = with(format!("{longest}\n").as_bytes()).load().expect("valid");
    assert_eq!(config.admin_password.as_ref().map(AdminPassword::reveal), Some(&*longest));
    let endless = vec![b'x'; 100_000];
    for (content, part) in [
        ("too short\n".as_bytes(), "12 to 256"),
        (b"two of them\nin a file\n", "12 to 256"),
        (b"", "empty"),
        (b"\n", "empty"),
        (b"not a text: \xff\xff\xff", "UTF-8"),
        (&endless, "12 to 256"),
    ] {
        let error = with(content).error();
        assert!(error.contains("FLUXSERVE_ADMIN_PASSWORD_FILE") && error.contains(part), "{error}");
        assert!(!error.contains("too short") && !error.contains("two of them"), "{error}");
    }
    let error = with(b"a good password").variable("FLUXSERVE_ADMIN_PASSWORD", "another password").error();
    assert!(error.contains("FLUXSERVE_ADMIN_PASSWORD_FILE") && error.contains("beside"), "{error}");
    let config = with(b"a good password").variable("FLUXSERVE_ADMIN_PASSWORD", "").load().expect("valid");
    assert!(config.admin_password.is_some(), "an empty variable counts as absent");
    std::fs::remove_file(&file).expect("removed");
    let error = sources().error();
    assert!(error.contains("FLUXSERVE_ADMIN_PASSWORD_FILE") && error.contains(name), "{error}");
    let error = Sources::new().file("admin_password_file = \"password\"").error();
    assert!(error.contains("unknown field `admin_password_file`"), "{error}");
}
