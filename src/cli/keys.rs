//! `fluxserve keys`: prints only the value of a new key to standard output; messages go elsewhere, for scripts.

use std::io::Write;

use clap::{Args, Subcommand};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::app::Keys;
use crate::auth::{
    Actor, Change, GRACE_SECONDS_MAX, KEYS_PER_PAGE_MAX, KeyEdit, KeyRecord, KeyService, LimitChanges, NewKey, Overlap,
};
use crate::cli::key_argument::KeyArgument;
use crate::cli::table::{to_the_second, write_table};
use crate::config::Config;
use crate::domain::limits::{InvalidLoraList, KeyLimits, LoraList};
use crate::domain::priority::Priority;
use crate::domain::scope::Scope;
use crate::domain::usage::{DayUsage, USAGE_DAYS_KEPT};

/// Commands on keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Create a key and print it; it is not shown again
    Create(CreateKeyArgs),
    /// List all keys, the oldest first
    List,
    /// Give a key a new value and print it; a running server refuses the old one from the next request on
    Rotate(RotateKeyArgs),
    /// Change a key's name, scope, expiry, limits or priority, from the next request on
    Edit(EditKeyArgs),
    /// Show a key's usage of the last days
    Usage(KeyUsageArgs),
    /// Revoke a key; a running server refuses it from the next request on
    Revoke(RevokeKeyArgs),
}

/// Options of `keys create`.
#[derive(Debug, Args)]
pub struct CreateKeyArgs {
    /// The key's name
    #[arg(long)]
    pub name: String,
    /// Its scope: all, inference, kubernetes-exec:all or kubernetes-exec:ID,ID
    #[arg(long)]
    pub scope: Scope,
    /// When it expires, e.g. 2030-01-31T12:00:00+01:00 [default: never]
    #[arg(long, value_name = "RFC3339", value_parser = parse_moment)]
    pub expires_at: Option<OffsetDateTime>,
    /// Maximum requests per minute [default: unlimited]
    #[arg(long, value_name = "N")]
    pub requests_per_minute: Option<u32>,
    /// Maximum unfinished jobs [default: unlimited]
    #[arg(long, value_name = "N")]
    pub concurrent_jobs: Option<u32>,
    /// Maximum work per UTC day: megapixels times steps, with 4 steps added per image [default: unlimited]
    #[arg(long, value_name = "N")]
    pub megapixel_steps_per_day: Option<u32>,
    /// Its share of the device relative to other keys: low, normal or high, each four times the one before
    #[arg(long, default_value_t)]
    pub priority: Priority,
    /// The LoRAs that it may use, by id or name [default: all]
    #[arg(long, value_name = "LORA[,LORA]")]
    pub loras: Option<LoraList>,
}

/// Options of `keys rotate`.
#[derive(Debug, Args)]
pub struct RotateKeyArgs {
    /// The key's prefix, as `keys list` shows it (rgpu_ and eight characters), or the key
    #[arg(value_name = "PREFIX", value_parser = KeyArgument::take)]
    pub key: KeyArgument,
    /// How long the old value still works
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=GRACE_SECONDS_MAX))]
    pub grace_seconds: u64,
}

/// Options of `keys edit`.
#[derive(Debug, Args)]
pub struct EditKeyArgs {
    /// The key's prefix, as `keys list` shows it (rgpu_ and eight characters), or the key
    #[arg(value_name = "PREFIX", value_parser = KeyArgument::take)]
    pub key: KeyArgument,
    /// The changes.
    #[command(flatten)]
    pub changes: KeyChanges,
}

/// Changes to a key: at least one.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct KeyChanges {
    /// New name
    #[arg(long)]
    pub name: Option<String>,
    /// Its scope: all, inference, kubernetes-exec:all or kubernetes-exec:ID,ID
    #[arg(long)]
    pub scope: Option<Scope>,
    /// When it expires, e.g. 2030-01-31T12:00:00+01:00
    #[arg(long, value_name = "RFC3339", value_parser = parse_moment, conflicts_with = "never_expires")]
    pub expires_at: Option<OffsetDateTime>,
    /// Remove its expiry
    #[arg(long)]
    pub never_expires: bool,
    /// Maximum requests per minute, or `none` for unlimited
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub requests_per_minute: Option<Change<u32>>,
    /// Maximum unfinished jobs, or `none` for unlimited
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub concurrent_jobs: Option<Change<u32>>,
    /// Maximum work per UTC day (megapixels times steps, with 4 steps added per image), or `none` for unlimited
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub megapixel_steps_per_day: Option<Change<u32>>,
    /// Its share of the device relative to other keys, for new jobs: low, normal or high
    #[arg(long)]
    pub priority: Option<Priority>,
    /// The LoRAs that it may use, by id or name, or `none` for no limit
    #[arg(long, value_name = "LORA[,LORA]", value_parser = parse_loras)]
    pub loras: Option<Change<LoraList>>,
}

impl KeyChanges {
    fn into_edit(self) -> KeyEdit {
        let expires_at = match self.expires_at {
            Some(expires_at) => Change::Set(expires_at),
            None if self.never_expires => Change::Remove,
            None => Change::Keep,
        };
        let limits = LimitChanges {
            requests_per_minute: self.requests_per_minute.unwrap_or_default(),
            concurrent_jobs: self.concurrent_jobs.unwrap_or_default(),
            megapixel_steps_per_day: self.megapixel_steps_per_day.unwrap_or_default(),
            priority: self.priority,
            loras: self.loras.unwrap_or_default(),
            ..LimitChanges::default()
        };
        KeyEdit { name: self.name, scope: self.scope, expires_at, limits, ..KeyEdit::default() }
    }
}

/// Options of `keys usage`.
#[derive(Debug, Args)]
pub struct KeyUsageArgs {
    /// The key's prefix, as `keys list` shows it (rgpu_ and eight characters), or the key
    #[arg(value_name = "PREFIX", value_parser = KeyArgument::take)]
    pub key: KeyArgument,
    /// Number of days, including today
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=i64::from(USAGE_DAYS_KEPT)))]
    pub days: u32,
}

/// Options of `keys revoke`.
#[derive(Debug, Args)]
pub struct RevokeKeyArgs {
    /// The key's prefix, as `keys list` shows it (rgpu_ and eight characters), or the key
    #[arg(value_name = "PREFIX", value_parser = KeyArgument::take)]
    pub key: KeyArgument,
}

fn parse_moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "write it like 2030-01-31T12:00:00Z or …+01:00".to_owned())
}

fn parse_limit(text: &str) -> Result<Change<u32>, String> {
    if text == "none" {
        return Ok(Change::Remove);
    }
    text.parse().map(Change::Set).map_err(|_| "a limit is a whole number, or `none`".to_owned())
}

fn parse_loras(text: &str) -> Result<Change<LoraList>, String> {
    if text == "none" {
        return Ok(Change::Remove);
    }
    text.parse().map(Change::Set).map_err(|error: InvalidLoraList| error.to_string())
}

/// Runs one of the commands.
pub(super) async fn run(
    command: KeysCommand,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    // Only `create` may create a database; elsewhere that would hide a mistyped folder.
    let keys = match command {
        KeysCommand::Create(_) => Keys::open(config).await?,
        KeysCommand::List
        | KeysCommand::Rotate(_)
        | KeysCommand::Edit(_)
        | KeysCommand::Usage(_)
        | KeysCommand::Revoke(_) => Keys::open_existing(config).await?,
    };
    let outcome = match command {
        KeysCommand::Create(arguments) => create(&keys, arguments, out, notes).await,
        KeysCommand::List => list(&keys.service, out).await,
        KeysCommand::Rotate(arguments) => rotate(&keys.service, &arguments, out, notes).await,
        KeysCommand::Edit(arguments) => edit(&keys, arguments, notes).await,
        KeysCommand::Usage(arguments) => usage(&keys, &arguments, out).await,
        KeysCommand::Revoke(arguments) => revoke(&keys.service, &arguments, notes).await,
    };
    keys.store.close().await;
    outcome
}

async fn create(
    keys: &Keys,
    arguments: CreateKeyArgs,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let CreateKeyArgs {
        name,
        scope,
        expires_at,
        requests_per_minute,
        concurrent_jobs,
        megapixel_steps_per_day,
        priority,
        loras,
    } = arguments;
    keys.check_namespaces(&scope).await?;
    let limits = KeyLimits {
        requests_per_minute,
        concurrent_jobs,
        megapixel_steps_per_day,
        priority,
        loras,
        ..KeyLimits::default()
    };
    let created = keys.service.create(NewKey { name, scope, expires_at, limits }, &Actor::CommandLine).await?;
    writeln!(out, "{}", created.plain.reveal())?;
    writeln!(notes, "created the key {}; keep it, it is not shown again", created.record.prefix)?;
    Ok(())
}

async fn list(keys: &KeyService, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page = keys.list(after, KEYS_PER_PAGE_MAX).await?;
        rows.extend(page.iter().map(row));
        match page.last() {
            Some(last) if page.len() == KEYS_PER_PAGE_MAX as usize => after = Some(last.id),
            _ => break,
        }
    }
    write_table(out, ["PREFIX", "NAME", "STATE", "SCOPE", "PRIORITY", "CREATED", "EXPIRES", "LAST USED"], &rows)?;
    Ok(())
}

fn row(key: &KeyRecord) -> [String; 8] {
    let moment = |moment: Option<OffsetDateTime>| moment.map_or_else(|| "-".to_owned(), to_the_second);
    [
        key.prefix.to_string(),
        key.name.clone(),
        key.state.to_string(),
        key.scope.to_string(),
        key.limits.priority.to_string(),
        to_the_second(key.created_at),
        moment(key.expires_at),
        moment(key.last_used_at),
    ]
}

async fn rotate(
    keys: &KeyService,
    arguments: &RotateKeyArgs,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let rotated = keys.rotate(arguments.key.public_id()?, arguments.grace_seconds, &Actor::CommandLine).await?;
    writeln!(out, "{}", rotated.plain.reveal())?;
    let KeyRecord { name, prefix, overlap, .. } = rotated.record;
    writeln!(notes, "the key {name} is now {prefix}; keep the value, it is not shown again")?;
    match overlap {
        Some(Overlap { prefix, until }) => {
            writeln!(notes, "the old value {prefix} works until {}", to_the_second(until))?;
        }
        None => writeln!(notes, "the old value no longer works")?,
    }
    Ok(())
}

async fn edit(keys: &Keys, arguments: EditKeyArgs, notes: &mut dyn Write) -> anyhow::Result<()> {
    let prefix = arguments.key.public_id()?;
    let edit = arguments.changes.into_edit();
    if let Some(scope) = &edit.scope {
        keys.check_namespaces(scope).await?;
    }
    let key = keys.service.edit(prefix, edit, &Actor::CommandLine).await?;
    let end = key.expires_at.map_or_else(|| "never".to_owned(), to_the_second);
    let KeyRecord { name, state, scope, limits, .. } = key;
    writeln!(notes, "the key {prefix} ({name}): {state}, scope {scope}, expires {end}, priority {}", limits.priority)?;
    Ok(())
}

async fn usage(keys: &Keys, arguments: &KeyUsageArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let usage = keys.usage(arguments.key.public_id()?, arguments.days).await?;
    let row = |day: &DayUsage| {
        [
            day.day.to_string(),
            day.requests.to_string(),
            day.work.images.to_string(),
            format!("{:.1}", day.work.megapixel_steps()),
            format!("{:.1}", day.work.engine_time.as_secs_f64()),
        ]
    };
    let rows: Vec<_> = usage.iter().map(row).collect();
    write_table(out, ["DAY (UTC)", "REQUESTS", "IMAGES", "MEGAPIXEL-STEPS", "ENGINE SECONDS"], &rows)?;
    Ok(())
}

async fn revoke(keys: &KeyService, arguments: &RevokeKeyArgs, notes: &mut dyn Write) -> anyhow::Result<()> {
    let prefix = arguments.key.public_id()?;
    let key = keys.revoke(prefix, &Actor::CommandLine).await?;
    let revoked_at = key.revoked_at.map(to_the_second).unwrap_or_default();
    writeln!(notes, "the key {prefix} ({}) has been revoked since {revoked_at}", key.name)?;
    Ok(())
}
