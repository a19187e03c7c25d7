// Lays an image on a canvas: reduces it, resizes it bilinearly and pads it, with exactly the pixels of OpenCV on x86.
//
// benchmarks/compile_kernels.py compiles this file to canvas.ptx, which the driver compiles for the GPU at hand. Floating
// point is compiled without fused multiply-adds, which would round otherwise than OpenCV does.

struct Source {
    const unsigned char *pixels;
    long long row, pixel, channel;  // bytes from one to the next
    int by;  // 1, 2, 4 or 8: the image is averaged over by × by pixels first
};

// A channel of a pixel of the reduced image, as INTER_AREA has it. 2 × 2 rounds half up, the others half to even.
static __device__ int reduced(const Source &source, int y, int x, int channel) {
    const int by = source.by;
    const unsigned char *corner =
        source.pixels + (long long)y * by * source.row + (long long)x * by * source.pixel + channel * source.channel;
    if (by == 1) return corner[0];
    int sum = 0;
    for (int row = 0; row < by; ++row)
        for (int column = 0; column < by; ++column) sum += corner[row * source.row + column * source.pixel];
    if (by == 2) return (sum + 2) >> 2;
    return (int)rintf((float)sum / (float)(by * by));
}

// The first of the two pixels that a place of the resized image lies between, and the second one's share.
static __device__ void between(int place, double scale, int *first, float *share) {
    const float at = (float)((place + 0.5) * scale - 0.5);
    *first = (int)floorf(at);
    *share = at - (float)*first;
}

static __device__ int clip(int value, int end) { return value < 0 ? 0 : value >= end ? end - 1 : value; }

// One thread makes one pixel. `height` and `width` are the reduced image's. `halved`: the resized image has half its
// sides, which OpenCV averages. `pad` is 0xBBGGRR.
extern "C" __global__ void lay_on_canvas(
    const unsigned char *pixels, long long row_bytes, long long pixel_bytes, long long channel_bytes, int by, int height,
    int width, unsigned char *canvas, int canvas_height, int canvas_width, int resized_height, int resized_width,
    int halved, int pad) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= canvas_width || y >= canvas_height) return;
    unsigned char *out = canvas + ((long long)y * canvas_width + x) * 3;
    if (x >= resized_width || y >= resized_height) {
        for (int channel = 0; channel < 3; ++channel) out[channel] = (unsigned char)(pad >> (8 * channel));
        return;
    }
    const Source source = {pixels, row_bytes, pixel_bytes, channel_bytes, by};
    if (resized_height == height && resized_width == width) {
        for (int channel = 0; channel < 3; ++channel) out[channel] = (unsigned char)reduced(source, y, x, channel);
        return;
    }
    if (halved) {
        for (int channel = 0; channel < 3; ++channel) {
            int sum = 2;
            for (int part = 0; part < 4; ++part) sum += reduced(source, 2 * y + part / 2, 2 * x + part % 2, channel);
            out[channel] = (unsigned char)(sum >> 2);
        }
        return;
    }
    // OpenCV's fixed point: shares in 11 bits, columns blended first. Beyond an edge a column is not blended, a row is.
    int left, top;
    float share_x, share_y;
    between(x, 1.0 / ((double)resized_width / width), &left, &share_x);
    between(y, 1.0 / ((double)resized_height / height), &top, &share_y);
    if (left < 0 || left >= width - 1) share_x = 0.0f;
    left = clip(left, width);
    const int right = clip(left + 1, width);
    const int left_weight = (int)rintf((1.0f - share_x) * 2048.0f), right_weight = (int)rintf(share_x * 2048.0f);
    const int top_weight = (int)rintf((1.0f - share_y) * 2048.0f), bottom_weight = (int)rintf(share_y * 2048.0f);
    const int upper_row = clip(top, height), lower_row = clip(top + 1, height);
    for (int channel = 0; channel < 3; ++channel) {
        const int upper = reduced(source, upper_row, left, channel) * left_weight
                        + reduced(source, upper_row, right, channel) * right_weight;
        const int lower = reduced(source, lower_row, left, channel) * left_weight
                        + reduced(source, lower_row, right, channel) * right_weight;
        out[channel] = (unsigned char)
            ((((top_weight * (upper >> 4)) >> 16) + ((bottom_weight * (lower >> 4)) >> 16) + 2) >> 2);
    }
}
