// Loads model.ort (from the app's assets) and runs it. In build.gradle.kts:
//   implementation("com.microsoft.onnxruntime:onnxruntime-android:@VERSION@")
// or a newer version; an older one may refuse the file.
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer

class GraphCompressModel(context: Context) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession

    init {
        val options = OrtSession.SessionOptions()
        @KOTLIN_PROVIDER@
        val bytes = context.assets.open("model.ort").use { it.readBytes() }
        session = environment.createSession(bytes, options)
    }

    /** @RETURNS@ Token ids come from tokenizer.json, for example by ai.djl.huggingface:tokenizers. */
    fun run(@KOTLIN_PARAMETERS@): @KOTLIN_RESULT@ {
        val inputs = mapOf(
@KOTLIN_INPUTS@
        )
        try {
            session.run(inputs).use { results ->
                val output = results.get(@KOTLIN_OUTPUT@).get() as OnnxTensor
                return output.@KOTLIN_READ@ // a copy: it outlives the results
            }
        } finally {
            inputs.values.forEach { it.close() }
        }
    }

    override fun close() = session.close()
}
