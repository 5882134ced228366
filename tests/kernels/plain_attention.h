// Attention in the plainest way, for comparison. A kernel must be included before.
#pragma once

#include "compare.h"

inline Bounds bounds_of(const std::vector<int> &lengths) { return bounds_from<Bounds>(lengths); }

// The plainest way. `weigh` turns the product of a query and a key, with their head and rows, into the weight's logarithm.
template <class Weigh>
std::vector<double> plain_attention(const uint16_t *qkv, const Bounds &bounds, int heads, int width, const Weigh &weigh) {
  const int part = heads * width;
  std::vector<double> answers(static_cast<size_t>(bounds.at[bounds.count]) * part);
  const auto at = [&](int row, int which, int column) {
    return static_cast<double>(value(qkv[static_cast<size_t>(row) * 3 * part + which * part + column]));
  };
  for (int sequence = 0; sequence < bounds.count; ++sequence) {
    for (int head = 0; head < heads; ++head) {
      for (int query = bounds.at[sequence]; query < bounds.at[sequence + 1]; ++query) {
        std::vector<double> weights;
        for (int key = bounds.at[sequence]; key < bounds.at[sequence + 1]; ++key) {
          double score = 0.0;
          for (int i = 0; i < width; ++i) {
            score += at(query, 0, head * width + i) * at(key, 1, head * width + i);
          }
          weights.push_back(weigh(score, head, query, key));
        }
        const double largest = *std::max_element(weights.begin(), weights.end());
        double total = 0.0;
        for (double &weight : weights) {
          weight = std::exp(weight - largest);
          total += weight;
        }
        for (int i = 0; i < width; ++i) {
          double sum = 0.0;
          for (size_t key = 0; key < weights.size(); ++key) {
            sum += weights[key] / total * at(bounds.at[sequence] + static_cast<int>(key), 2, head * width + i);
          }
          answers[static_cast<size_t>(query) * part + head * width + i] = sum;
        }
      }
    }
  }
  return answers;
}
