// What the loading example uses of the runtime's Java interface, without anything behind it.
package ai.onnxruntime

import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.util.Optional

enum class OnnxJavaType { INT8, UINT8 }

interface OnnxValue : AutoCloseable {
    override fun close()
}

class OnnxTensor : OnnxValue {
    val byteBuffer: ByteBuffer get() = TODO()
    val floatBuffer: FloatBuffer get() = TODO()
    val intBuffer: IntBuffer get() = TODO()
    val longBuffer: LongBuffer get() = TODO()

    override fun close() = TODO()

    companion object {
        fun createTensor(env: OrtEnvironment, data: ByteBuffer, shape: LongArray, type: OnnxJavaType): OnnxTensor =
            TODO()

        fun createTensor(env: OrtEnvironment, data: FloatBuffer, shape: LongArray): OnnxTensor = TODO()

        fun createTensor(env: OrtEnvironment, data: IntBuffer, shape: LongArray): OnnxTensor = TODO()

        fun createTensor(env: OrtEnvironment, data: LongBuffer, shape: LongArray): OnnxTensor = TODO()
    }
}

class OrtEnvironment {
    fun createSession(model: ByteArray, options: OrtSession.SessionOptions): OrtSession = TODO()

    companion object {
        fun getEnvironment(): OrtEnvironment = TODO()
    }
}

class OrtSession : AutoCloseable {
    fun run(inputs: Map<String, OnnxTensor>): Result = TODO()

    override fun close() = TODO()

    class SessionOptions {
        fun addNnapi(): Unit = TODO()

        fun addXnnpack(options: Map<String, String>): Unit = TODO()
    }

    class Result : AutoCloseable {
        fun get(name: String): Optional<OnnxValue> = TODO()

        override fun close() = TODO()
    }
}
