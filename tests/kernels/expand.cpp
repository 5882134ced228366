// Weights expanded from quantized formats, on the emulated machine: recorded blocks of every type, with the bits of the
// formats' reference rounded to bf16.
#include "../../src/engine/kernels/expand.cu"
#include "compare.h"

#include <fstream>

namespace {

// The tensors of a safetensors file whose header has no spaces.
class Recorded {
public:
  explicit Recorded(const char *path) {
    std::ifstream file(path, std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    uint64_t length = 0;
    if (all.size() < sizeof length) {
      std::fprintf(stderr, "%s cannot be read\n", path);
      std::exit(1);
    }
    std::memcpy(&length, all.data(), sizeof length);
    header_ = all.substr(sizeof length, length);
    data_ = all.substr(sizeof length + length);
  }

  std::string bytes(const std::string &name) const {
    const std::string key = "\"data_offsets\":[";
    const size_t entry = header_.find("\"" + name + "\":");
    const size_t offsets = entry == std::string::npos ? entry : header_.find(key, entry);
    if (offsets == std::string::npos) {
      std::fprintf(stderr, "no tensor %s\n", name.c_str());
      std::exit(1);
    }
    char *end = nullptr;
    const size_t first = std::strtoull(header_.c_str() + offsets + key.size(), &end, 10);
    const size_t last = std::strtoull(end + 1, nullptr, 10);
    return data_.substr(first, last - first);
  }

  template <class T> std::vector<T> numbers(const std::string &name) const {
    const std::string bytes = this->bytes(name);
    std::vector<T> numbers(bytes.size() / sizeof(T));
    std::memcpy(numbers.data(), bytes.data(), bytes.size());
    return numbers;
  }

private:
  std::string header_, data_;
};

int blocks_for(int64_t chunks) { return static_cast<int>((chunks + 255) / 256); }

// All bits of `expected`, rounded to bf16.
void compare_bits(const std::string &name, Guarded &found, const std::vector<float> &expected) {
  size_t wrong = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const uint16_t bits = found.data()[i];
    const bool same = bits == to_bf16(expected[i]) || (std::isnan(value(bits)) && std::isnan(expected[i]));
    wrong += same ? 0 : 1;
  }
  const bool is_right = wrong == 0 && found.is_whole() && !expected.empty();
  std::printf("%-7s %s: %zu of %zu wrong\n", is_right ? "ok" : "FAULT", name.c_str(), wrong, expected.size());
  faults += is_right ? 0 : 1;
}

using Kernel = void (*)(const uint8_t *, uint16_t *, int64_t, float);

void test_type(const Recorded &recorded, const std::string &name, Kernel kernel, float scale = 1.0f) {
  const auto raw = recorded.numbers<uint8_t>(name + ".raw");
  auto expected = recorded.numbers<float>(name + ".f32");
  for (float &number : expected) {
    number *= scale;
  }
  const int64_t chunks = static_cast<int64_t>(expected.size()) / CHUNK;
  expected.resize(static_cast<size_t>(chunks) * CHUNK);
  Guarded out(expected.size());
  emulation::launch({blocks_for(chunks), 1}, 256, 0, [&] { kernel(raw.data(), out.data(), chunks, scale); });
  compare_bits(name + (scale == 1.0f ? "" : ", scaled"), out, expected);
}

void test_f32() {
  std::vector<float> numbers(4096);
  std::normal_distribution<float> normal;
  std::generate(numbers.begin(), numbers.end(), [&] { return normal(generator); });
  Guarded out(numbers.size());
  const auto *codes = reinterpret_cast<const uint8_t *>(numbers.data());
  emulation::launch({2, 1}, 256, 0, [&] { expand_f32(codes, out.data(), 512, 1.0f); });
  compare_bits("F32", out, numbers);
}

void test_four_bits(int block) {
  constexpr int NUMBERS = 4096 + 8;
  std::vector<uint8_t> codes(NUMBERS / 2);
  std::vector<float> levels(16), scales(NUMBERS / block + 1), expected;
  std::uniform_real_distribution<float> real(-1.0f, 1.0f);
  for (uint8_t &code : codes) {
    code = static_cast<uint8_t>(generator());
  }
  std::generate(levels.begin(), levels.end(), [&] { return real(generator); });
  std::generate(scales.begin(), scales.end(), [&] { return real(generator); });
  for (int i = 0; i < NUMBERS; ++i) {
    const uint8_t byte = codes[i / 2];
    expected.push_back(levels[i % 2 == 0 ? byte >> 4 : byte & 0xf] * scales[i / block]);
  }
  Guarded out(NUMBERS);
  emulation::launch({blocks_for(NUMBERS / CHUNK), 1}, 256, 0, [&] {
    expand_four_bits(codes.data(), levels.data(), scales.data(), out.data(), NUMBERS / CHUNK, block);
  });
  compare_bits("four bits in blocks of " + std::to_string(block), out, expected);
}

void test_int8() {
  constexpr int ROWS = 5, COLUMNS = 24;
  std::vector<uint8_t> codes(ROWS * COLUMNS);
  std::vector<float> scales(ROWS), expected;
  std::uniform_real_distribution<float> real(0.1f, 1.0f);
  for (uint8_t &code : codes) {
    code = static_cast<uint8_t>(generator());
  }
  std::generate(scales.begin(), scales.end(), [&] { return real(generator); });
  for (int i = 0; i < ROWS * COLUMNS; ++i) {
    expected.push_back(static_cast<float>(static_cast<int8_t>(codes[i])) * scales[i / COLUMNS] * (1.0f / 127.0f));
  }
  Guarded out(expected.size());
  emulation::launch({1, 1}, 256, 0,
                    [&] { expand_int8(codes.data(), scales.data(), out.data(), ROWS * COLUMNS / CHUNK, COLUMNS); });
  compare_bits("int8", out, expected);
}

} // namespace

int main() {
  const Recorded recorded("tests/reference/quant/blocks.safetensors");
  test_f32();
  test_type(recorded, "F16", expand_f16);
  test_type(recorded, "BF16", expand_bf16);
  test_type(recorded, "F8_E4M3", expand_e4m3);
  test_type(recorded, "F8_E4M3", expand_e4m3, 0.37f);
  test_type(recorded, "F8_E5M2", expand_e5m2);
  test_type(recorded, "Q4_0", expand_q4_0);
  test_type(recorded, "Q4_1", expand_q4_1);
  test_type(recorded, "Q5_0", expand_q5_0);
  test_type(recorded, "Q5_1", expand_q5_1);
  test_type(recorded, "Q8_0", expand_q8_0);
  test_type(recorded, "Q2_K", expand_q2_k);
  test_type(recorded, "Q3_K", expand_q3_k);
  test_type(recorded, "Q4_K", expand_q4_k);
  test_type(recorded, "Q5_K", expand_q5_k);
  test_type(recorded, "Q6_K", expand_q6_k);
  test_type(recorded, "IQ4_NL", expand_iq4_nl);
  test_type(recorded, "IQ4_XS", expand_iq4_xs);
  test_four_bits(64);
  test_four_bits(8);
  test_int8();
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
