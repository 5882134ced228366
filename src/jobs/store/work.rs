//! All statements on the table `work_by_day`.

use std::time::Duration;

use sqlx::{FromRow, SqliteConnection};

use super::JobStore;
use crate::domain::budget::BudgetHolder;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, DayRange, Work};
use crate::jobs::{JobsError, WorkGroup, WorkSum};

/// Charges a job that has just ended: to the row of its owner, the project and the model that its own row names, and in
/// its own row, in the transaction of its end.
pub(super) async fn charge(
    connection: &mut SqliteConnection,
    row_id: &str,
    day: Day,
    work: &Work,
) -> Result<(), JobsError> {
    let pixel_steps = work.pixel_steps.cast_signed();
    let microseconds = i64::try_from(work.engine_time.as_micros()).unwrap_or(i64::MAX);
    sqlx::query("UPDATE jobs SET pixel_steps = ?, engine_microseconds = ? WHERE id = ?")
        .bind(pixel_steps)
        .bind(microseconds)
        .bind(row_id)
        .execute(&mut *connection)
        .await?;
    // A request that cannot be read has a model that cannot be known.
    sqlx::query(
        "INSERT INTO work_by_day (owner, day, project, model, jobs, images, pixel_steps, engine_microseconds)
         SELECT owner, ?1, project,
                CASE WHEN json_valid(request) THEN COALESCE(json_extract(request, '$.model'), '') ELSE '' END,
                1, ?2, ?3, ?4
         FROM jobs WHERE id = ?5
         ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs,
                                   images = images + excluded.images,
                                   pixel_steps = pixel_steps + excluded.pixel_steps,
                                   engine_microseconds = engine_microseconds + excluded.engine_microseconds",
    )
    .bind(day.number())
    .bind(work.images.cast_signed())
    .bind(pixel_steps)
    .bind(microseconds)
    .bind(row_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Sums as read from the database, with what they are of.
#[derive(FromRow)]
struct StoredSum {
    #[sqlx(rename = "word")]
    group: String,
    jobs: i64,
    images: i64,
    pixel_steps: i64,
    engine_microseconds: i64,
}

impl StoredSum {
    fn read(self) -> (String, WorkSum) {
        let work = Work {
            images: self.images.cast_unsigned(),
            pixel_steps: self.pixel_steps.cast_unsigned(),
            engine_time: Duration::from_micros(self.engine_microseconds.cast_unsigned()),
        };
        (self.group, WorkSum { jobs: self.jobs.cast_unsigned(), work })
    }
}

/// The statement for sums by one column, which is compared as text. Parameters: the days (1, 2), after which group (3), at
/// most (4) groups.
macro_rules! sums_by {
    ($column:literal, $after:literal) => {
        concat!(
            "SELECT CAST(",
            $column,
            " AS TEXT) AS word, SUM(jobs) AS jobs, SUM(images) AS images, SUM(pixel_steps) AS pixel_steps,
                    SUM(engine_microseconds) AS engine_microseconds
             FROM work_by_day WHERE day BETWEEN ?1 AND ?2 AND ",
            $after,
            " GROUP BY ",
            $column,
            " ORDER BY ",
            $column,
            " LIMIT ?4"
        )
    };
}

impl JobStore {
    /// An owner's usage by day since `since`; days without usage are left out.
    pub(in crate::jobs) async fn work_by_day(&self, owner: KeyId, since: Day) -> Result<Vec<(Day, Work)>, JobsError> {
        let rows: Vec<(i32, i64, i64, i64)> = sqlx::query_as(
            "SELECT day, SUM(images), SUM(pixel_steps), SUM(engine_microseconds) FROM work_by_day
             WHERE owner = ? AND day >= ? GROUP BY day ORDER BY day",
        )
        .bind(owner.to_string())
        .bind(since.number())
        .fetch_all(self.store.pool())
        .await?;
        let read = |(day, images, pixel_steps, engine_microseconds): (i32, i64, i64, i64)| {
            let work = Work {
                images: images.cast_unsigned(),
                pixel_steps: pixel_steps.cast_unsigned(),
                engine_time: Duration::from_micros(engine_microseconds.cast_unsigned()),
            };
            (Day::from_number(day), work)
        };
        Ok(rows.into_iter().map(read).collect())
    }

    /// What a key, or all keys of a project, have used in the days.
    pub(in crate::jobs) async fn work_of(&self, holder: BudgetHolder, days: DayRange) -> Result<Work, JobsError> {
        // A project's sums come from the index alone, which leaves out rows without a project.
        let statement = match holder {
            BudgetHolder::Key(_) => {
                "SELECT SUM(images), SUM(pixel_steps), SUM(engine_microseconds) FROM work_by_day
                 WHERE owner = ? AND day BETWEEN ? AND ?"
            }
            BudgetHolder::Project(_) => {
                "SELECT SUM(images), SUM(pixel_steps), SUM(engine_microseconds) FROM work_by_day
                 WHERE project = ? AND project <> '' AND day BETWEEN ? AND ?"
            }
        };
        let sums: (Option<i64>, Option<i64>, Option<i64>) = sqlx::query_as(statement)
            .bind(holder.id_text())
            .bind(days.from.number())
            .bind(days.to.number())
            .fetch_one(self.store.pool())
            .await?;
        let number = |sum: Option<i64>| sum.unwrap_or(0).cast_unsigned();
        Ok(Work {
            images: number(sums.0),
            pixel_steps: number(sums.1),
            engine_time: Duration::from_micros(number(sums.2)),
        })
    }

    /// Sums over all owners in the days, by a column, in its order: at most `limit` groups after `after`.
    pub(in crate::jobs) async fn work_sums(
        &self,
        group: WorkGroup,
        days: DayRange,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, WorkSum)>, JobsError> {
        let statement = match group {
            // No owner is empty. There may be very many, so a page begins where the last one ended.
            WorkGroup::Key => sums_by!("owner", "owner > COALESCE(?3, '')"),
            WorkGroup::Model => sums_by!("model", "(?3 IS NULL OR model > ?3)"),
            WorkGroup::Day => sums_by!("day", "(?3 IS NULL OR day > ?3)"),
            WorkGroup::Project => sums_by!("project", "(?3 IS NULL OR project > ?3)"),
        };
        let rows: Vec<StoredSum> = sqlx::query_as(statement)
            .bind(days.from.number())
            .bind(days.to.number())
            .bind(after)
            .bind(limit)
            .fetch_all(self.store.pool())
            .await?;
        Ok(rows.into_iter().map(StoredSum::read).collect())
    }

    /// Deletes usage before `day`.
    pub(in crate::jobs) async fn delete_work_before(&self, day: Day) -> Result<(), JobsError> {
        sqlx::query("DELETE FROM work_by_day WHERE day < ?").bind(day.number()).execute(self.store.pool()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_projects_use_is_read_from_the_index_alone() {
        let store = Store::open_in_memory().await.expect("a database");
        let statement = "EXPLAIN QUERY PLAN SELECT SUM(images), SUM(pixel_steps), SUM(engine_microseconds)
                         FROM work_by_day WHERE project = 'x' AND project <> '' AND day BETWEEN 1 AND 2";
        let rows: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(statement).fetch_all(store.pool()).await.expect("a plan");
        let plan: Vec<String> = rows.into_iter().map(|(_, _, _, step)| step).collect();
        assert!(plan[0].contains("COVERING INDEX work_by_day_by_project (project=? AND day>? AND day<?)"), "{plan:?}");
    }

    #[tokio::test]
    async fn sums_are_in_the_order_of_their_groups_and_can_be_read_in_pages() {
        let store = Store::open_in_memory().await.expect("a database");
        for (owner, day, model, steps) in [("a", 9, "x", 1), ("a", 10, "y", 2), ("b", 10, "x", 4), ("c", 11, "", 8)] {
            sqlx::query("INSERT INTO work_by_day VALUES (?, ?, '', ?, 2, 1, ?, 1000)")
                .bind(owner)
                .bind(day)
                .bind(model)
                .bind(steps)
                .execute(store.pool())
                .await
                .expect("a row");
        }
        let jobs = JobStore::new(store);
        let days = DayRange { from: Day::from_number(9), to: Day::from_number(10) };
        let sums = async |group, after, limit| {
            let sums = jobs.work_sums(group, days, after, limit).await.expect("read");
            sums.into_iter().map(|(word, sum)| (word, sum.jobs, sum.work.pixel_steps)).collect::<Vec<_>>()
        };
        let of = |word: &str, jobs, steps| (word.to_owned(), jobs, steps);
        assert_eq!(sums(WorkGroup::Key, None, 9).await, [of("a", 4, 3), of("b", 2, 4)]);
        assert_eq!(sums(WorkGroup::Key, Some("a"), 9).await, [of("b", 2, 4)]);
        assert_eq!(sums(WorkGroup::Key, None, 1).await, [of("a", 4, 3)]);
        assert_eq!(sums(WorkGroup::Model, None, 9).await, [of("x", 4, 5), of("y", 2, 2)]);
        assert_eq!(sums(WorkGroup::Day, None, 9).await, [of("9", 2, 1), of("10", 4, 6)], "in the order of days");
        assert_eq!(sums(WorkGroup::Project, None, 9).await, [of("", 6, 7)]);
    }
}
