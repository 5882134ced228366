// Changes of low rank, on the emulated machine.
#include "../../src/engine/kernels/low_rank.cu"
#include "compare.h"

namespace {

// A change of `rows` rows from `first_row` on.
struct Change {
  int first_row, rows, first_column, columns, rank;
  float scale;
  std::shared_ptr<Guarded> down, up;
};

Change change(int first_row, int rows, int first_column, int columns, int rank, float scale, int inputs) {
  return {first_row, rows, first_column, columns, rank, scale,
          random_values(static_cast<size_t>(rank) * inputs, 1.0f / std::sqrt(static_cast<float>(inputs))),
          random_values(static_cast<size_t>(columns) * rank, 1.0f / std::sqrt(static_cast<float>(rank)))};
}

// As ops/low_rank/launches.rs arranges changes. Those of the same rows follow each other.
struct Launch {
  LowRankParts parts{};
  int inner_values = 0, shrink_blocks = 0, expand_blocks = 0;

  explicit Launch(const std::vector<Change> &changes) {
    for (size_t first = 0; first < changes.size();) {
      size_t end = first;
      int left = changes[first].first_column, right = 0;
      for (; end < changes.size() && changes[end].first_row == changes[first].first_row; ++end) {
        const Change &of = changes[end];
        left = std::min(left, of.first_column);
        right = std::max(right, of.first_column + of.columns);
        parts.at[parts.count++] = {of.down->data(), of.up->data(), of.first_row, of.rows, of.first_column, of.columns,
                                   of.rank, inner_values, of.scale, 0, 0, 0};
        inner_values += of.rows * of.rank;
        shrink_blocks += (of.rows + 63) / 64 * ((of.rank + 31) / 32);
      }
      LowRankPart &part = parts.at[first];
      part.group = static_cast<int>(end - first);
      part.first_tile = left / 64;
      part.tiles = (right + 63) / 64 - part.first_tile;
      expand_blocks += (part.rows + 63) / 64 * part.tiles;
      first = end;
    }
  }

  void run(uint16_t *out, const uint16_t *x, uint16_t *inner, int inputs, int width, int stride) const {
    emulation::launch({shrink_blocks, 1}, 128, 4 * 96 * 64 * 2,
                      [&] { low_rank_shrink(x, inner, parts, inputs, inputs); });
    emulation::launch({expand_blocks, 1}, 128, 3 * 64 * 64 * 2, [&] { low_rank_expand(out, inner, parts, width, stride); });
  }
};

bool is_in(const Change &of, int row, int column) {
  return row >= of.first_row && row < of.first_row + of.rows && column >= of.first_column &&
         column < of.first_column + of.columns;
}

// In the plainest way. What is between the two products is rounded.
double added(const Change &of, const uint16_t *x, int row, int column, int inputs) {
  double sum = 0.0;
  for (int rank = 0; rank < of.rank; ++rank) {
    double inner = 0.0;
    for (int i = 0; i < inputs; ++i) {
      inner += static_cast<double>(value(x[static_cast<size_t>(row) * inputs + i])) *
               value(of.down->data()[static_cast<size_t>(rank) * inputs + i]);
    }
    const double rounded = value(to_bf16(static_cast<float>(of.scale * inner)));
    sum += rounded * value(of.up->data()[static_cast<size_t>(column - of.first_column) * of.rank + rank]);
  }
  return sum;
}

void test(const std::string &what, int rows, int inputs, int width, const std::vector<Change> &changes) {
  // Rows of the output are further apart than they are wide; what is between them must stay.
  const int stride = width + 16;
  auto x = random_values(static_cast<size_t>(rows) * inputs, 1.0f);
  auto out = random_values(static_cast<size_t>(rows) * stride, 1.0f);
  // Where nothing is added, even a zero's sign stays.
  for (int i = 0; i < rows * stride; i += 3) {
    out->data()[i] = 0x8000;
  }
  const Values before(out->data(), out->data() + static_cast<size_t>(rows) * stride);
  const Launch launch(changes);
  Guarded inner(launch.inner_values);
  launch.run(out->data(), x->data(), inner.data(), inputs, width, stride);

  std::vector<double> expected;
  size_t touched = 0, moved = 0;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < stride; ++column) {
      const size_t at = static_cast<size_t>(row) * stride + column;
      double sum = value(before[at]);
      bool is_changed = false;
      for (const Change &of : changes) {
        if (is_in(of, row, column)) {
          sum += added(of, x->data(), row, column, inputs);
          is_changed = true;
        }
      }
      expected.push_back(sum);
      touched += is_changed ? 1 : 0;
      moved += !is_changed && out->data()[at] != before[at] ? 1 : 0;
    }
  }
  compare(what, *out, expected, 1e-2);
  const bool is_whole = inner.is_whole() && moved == 0 && touched > 0;
  std::printf("%-7s %s: %zu values changed, %zu others moved%s\n", is_whole ? "ok" : "FAULT", what.c_str(), touched, moved,
              inner.is_whole() ? "" : "; wrote out of bounds between the products");
  faults += is_whole ? 0 : 1;
}

// A row's bits do not depend on the other rows, on their changes, or on where it is.
void test_alone() {
  const int rows = 150, inputs = 136, width = 192;
  auto x = random_values(static_cast<size_t>(rows) * inputs, 1.0f);
  auto out = random_values(static_cast<size_t>(rows) * width, 1.0f);
  const Values before(out->data(), out->data() + static_cast<size_t>(rows) * width);
  Change own = change(67, 70, 40, 104, 40, 0.75f, inputs);
  const Change second = change(67, 70, 0, 64, 8, -1.5f, inputs);
  const Launch together({change(0, 67, 0, 192, 128, 1.0f, inputs), own, second, change(137, 13, 64, 64, 16, 2.0f, inputs)});
  Guarded inner(together.inner_values);
  together.run(out->data(), x->data(), inner.data(), inputs, width, width);
  const int row = 67 + 66;
  Guarded row_out(width), row_inner(own.rank + second.rank);
  std::copy_n(before.data() + static_cast<size_t>(row) * width, width, row_out.data());
  own.first_row = 0;
  own.rows = 1;
  Change alone_second = second;
  alone_second.first_row = 0;
  alone_second.rows = 1;
  Launch({own, alone_second})
      .run(row_out.data(), x->data() + static_cast<size_t>(row) * inputs, row_inner.data(), inputs, width, width);
  const bool is_same =
      std::memcmp(row_out.data(), out->data() + static_cast<size_t>(row) * width, width * sizeof(uint16_t)) == 0;
  const bool is_changed = std::memcmp(row_out.data(), before.data() + static_cast<size_t>(row) * width, 2 * width) != 0;
  std::printf("%-7s a row alone has the bits it has among others\n", is_same && is_changed ? "ok" : "FAULT");
  faults += is_same && is_changed ? 0 : 1;
}

} // namespace

int main() {
  // The smallest of all, and one of whole tiles.
  test("one row, rank 8", 1, 8, 8, {change(0, 1, 0, 8, 8, 1.0f, 8)});
  test("whole tiles", 64, 256, 128, {change(0, 64, 0, 128, 64, 0.5f, 256)});
  // More inputs than are in shared memory, with a remainder.
  test("many inputs", 3, 64 * 9 + 24, 72, {change(0, 3, 0, 72, 16, 1.0f, 64 * 9 + 24)});
  // Ranks up to RANK_MAX of ops/low_rank.rs, over ranges of columns that begin and end inside a tile.
  for (int rank : {8, 16, 24, 32, 40, 72, 104, 128, 136, 256, 328, 512}) {
    test("rank " + std::to_string(rank), 37, 72, 200, {change(2, 33, 24, 160, rank, 1.25f, 72)});
  }
  // Sequences with changes of their own, one without any, and several changes of one: side by side, on top of each other, apart.
  test("several sequences", 200, 104, 320,
       {change(0, 77, 0, 320, 16, 1.0f, 104), change(78, 90, 8, 56, 8, 0.5f, 104), change(78, 90, 64, 128, 128, -1.0f, 104),
        change(78, 90, 96, 64, 32, 2.0f, 104), change(78, 90, 288, 32, 24, 1.0f, 104),
        change(170, 30, 128, 64, 64, 1.0f, 104)});
  // Large ranks beside small ones, on top of each other and in other rows.
  test("large ranks beside small ones", 96, 40, 136,
       {change(0, 30, 0, 136, 264, 0.5f, 40), change(0, 30, 40, 64, 16, 1.0f, 40), change(30, 66, 8, 128, 512, -1.0f, 40)});
  test_alone();
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
