// Rows of activations in the tile layout that the linear kernels read.
#include "model.h"

namespace farthing {

void Activations::shape(int rows, int rows_max, int inputs, int part, Format format) {
  const int tiles = (rows + rows_max - 1) / rows_max;
  firsts_.resize(tiles + 1);
  for (int t = 0; t <= tiles; ++t)  // heights differ by one at most
    firsts_[t] = tiles ? static_cast<int>(static_cast<std::int64_t>(rows) * t / tiles) : 0;
  inputs_ = inputs;
  part_ = part;
  format_ = format;
  const std::size_t n = rows, size = n * inputs * (format == Format::f32 ? sizeof(float) : 1);
  if (values_.size() < size) values_.resize(size);
  if (format == Format::f32) return;
  if (scales_.size() < n * (inputs / part)) scales_.resize(n * (inputs / part));
  if (offsets_.size() < n * (inputs / part)) offsets_.resize(n * (inputs / part));
  if (sums_.size() < n * (inputs / kTile)) sums_.resize(n * (inputs / kTile));
}

ActivationTile Activations::tile(int index) const {
  const std::size_t at = first(index);
  const std::size_t parts = inputs_ / part_;
  return {values_.data() + at * inputs_ * (format_ == Format::f32 ? sizeof(float) : 1), scales_.data() + at * parts,
          offsets_.data() + at * parts, sums_.data() + at * (inputs_ / kTile)};
}

void Activations::put(const Kernels& kernels, int tile, int row, const float* x, int from, int count) {
  const int column = row - first(tile), height = rows(tile);
  const std::size_t at = first(tile);
  if (format_ == Format::f32) {
    float* out = reinterpret_cast<float*>(values_.data()) + at * inputs_ + column;
    for (int i = 0; i < count; ++i) out[static_cast<std::size_t>(from + i) * height] = x[i];
    return;
  }
  const std::size_t part = from / part_, parts = inputs_ / part_, units = inputs_ / kTile;
  kernels.quantise(x, count, part_,
                   {values_.data() + at * inputs_ + static_cast<std::size_t>(from) * height + column * kUnit,
                    scales_.data() + at * parts + part * height + column,
                    offsets_.data() + at * parts + part * height + column,
                    sums_.data() + at * units + static_cast<std::size_t>(from / kTile) * height + column, height});
}

void Activations::will_put(int tile, int from, int count) {
  if (format_ == Format::f32) return;
  const std::size_t at = first(tile), height = rows(tile), part = from / part_, parts = inputs_ / part_;
  const std::size_t units = inputs_ / kTile, scales = count / part_ * height;
  will_write(values_.data() + at * inputs_ + from * height, count * height);
  will_write(scales_.data() + at * parts + part * height, scales * sizeof(float));
  will_write(offsets_.data() + at * parts + part * height, scales * sizeof(std::int32_t));
  will_write(sums_.data() + at * units + from / kTile * height, count / kTile * height * sizeof(float));
}

}  // namespace farthing
